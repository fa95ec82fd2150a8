"""Files of settings, TOML or JSON, read strictly: an unknown key is an error with the nearest name and the line."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from vitdeploy import files
from vitdeploy.errors import InputError, UsageError, nearest
from vitdeploy.machine import MOST_THREADS

if sys.version_info >= (3, 11):
    import tomllib
else:  # JetPack 6 has Python 3.10
    import tomli as tomllib

T = TypeVar("T")


def read_toml(path: Path, kind: type[T], under: Mapping[str, object] | None = None) -> T:
    """Read a TOML (or, by its name, JSON) file as ``kind``, strictly.

    Args:
        path: The file.
        kind: What it is.
        under: What holds where the file says nothing, in place of the defaults.

    Raises:
        InputError: VD3001, unreadable.
        UsageError: VD2007 not TOML; VD2002 unknown key; VD2003 bad value.
    """
    text, table = _read(path)
    _check_keys(table, kind, text, path, ())
    try:
        return msgspec.convert({**under, **table} if under and isinstance(table, dict) else table, kind)
    except msgspec.ValidationError as exc:
        raise UsageError("VD2003", str(exc).replace("`$", "`").replace("`.", "`"), file=path) from exc
    except UsageError as exc:
        raise type(exc)(exc.code, exc.message, file=path, fix=exc.fix) from exc


def read_table(path: Path) -> dict[str, Any]:
    """The file as it is written, without a check of its keys; nothing where it is no table.

    Raises:
        InputError: VD3001, unreadable.
        UsageError: VD2007, not TOML.
    """
    table = _read(path)[1]
    return table if isinstance(table, dict) else {}


def _read(path: Path) -> tuple[str, object]:
    """Text and content."""
    try:
        text = files.read_bytes(path, files.LARGEST_TEXT).decode()
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=path) from exc
    except UnicodeDecodeError as exc:
        raise UsageError("VD2007", "is not text in UTF-8", file=path) from exc
    try:
        return text, msgspec.json.decode(text) if path.suffix == ".json" else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, msgspec.DecodeError, RecursionError) as exc:
        raise UsageError("VD2007", f"is not valid {path.suffix[1:].upper() or 'TOML'}: {exc}", file=path) from exc


def _check_keys(table: object, kind: object, text: str, path: Path, above: tuple[str, ...]) -> None:
    """Name the first unknown key with its line, before msgspec would name it without."""
    struct = next((k for k in (kind, *get_args(kind)) if isinstance(k, type) and issubclass(k, msgspec.Struct)), None)
    if isinstance(table, list):  # [[section]], once for each
        for item in table:
            _check_keys(item, kind, text, path, above)
    if struct is None or not isinstance(table, dict):
        return
    if get_origin(kind) is dict:  # tables under names of one's own
        for name, item in table.items():
            _check_keys(item, struct, text, path, (*above, name))
        return
    known: dict[str, Any] = get_type_hints(struct)
    for key, value in table.items():
        if key not in known:
            where = ".".join((*above, key))
            fix = nearest(key, known) or f"known keys: {', '.join(known)}"
            raise UsageError("VD2002", f"line {_line(text, key, above)}: unknown key {where!r}", file=path, fix=fix)
        _check_keys(value, known[key], text, path, (*above, key))


def _line(text: str, key: str, above: tuple[str, ...]) -> int:
    """The line where ``key`` is set, looked for behind the heading of its table."""
    lines, start = text.splitlines(), 0
    if above:
        heading = re.compile(rf"\s*\[{{1,2}}\s*{re.escape('.'.join(above))}\s*\]")
        start = next((n for n, line in enumerate(lines) if heading.match(line)), 0)
    pattern = re.compile(rf"""\s*(\[\s*){{0,2}}["']?(?:[\w.]*\.)?{re.escape(key)}["']?\s*[=\].:]""")
    return next((n for n in range(start, len(lines)) if pattern.match(lines[n])), start) + 1


MOST = {"threads": MOST_THREADS, "streams": MOST_THREADS, "batch": 1 << 16, "largest_batch": 1 << 16, "usual_batch": 1 << 16}
"""Most that settings may be: engines end the process at thousands of threads, and allocate before they look."""


def require_positive(config: msgspec.Struct, *names: str) -> None:
    """Refuse counts below 1, and those that no machine has; of a tuple each.

    Raises:
        UsageError: VD2003.
    """
    for name in names:
        given = getattr(config, name)
        for value in given if isinstance(given, tuple) else (given,):
            if value is not None and value < 1:
                raise UsageError("VD2003", f"{name} is {value}", fix="use 1 or more")
            if value is not None and value > (most := MOST.get(name, value)):
                raise UsageError("VD2003", f"{name} is {value}", fix=f"use {most} or fewer")
