"""Records as JSON text, for ``--json`` and for files.

JSON has no NaN and no infinity, and a missing number must not pass for one that was measured: such numbers are written as
the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"`` (as protobuf's JSON mapping does), and read back as numbers.
Everything outside ASCII is escaped, so that no terminal is moved by a file name and no locale can make the writing fail; so is a
second ``#``, since ``##[`` anywhere in a log is a command to CI servers.
"""

from __future__ import annotations

import json
import math

import msgspec


def encode(record: object) -> str:
    """A record (struct, dict, list) as indented JSON with a line break at the end."""
    table = _spell_out_infinities(msgspec.to_builtins(record, enc_hook=_unwrap_string))
    return json.dumps(table, indent=2, allow_nan=False).replace("##", "#\\u0023") + "\n"


def _unwrap_string(value: object) -> str:
    """Strings of another class than str, as torch's version is one; nothing else passes for text."""
    if isinstance(value, str):
        return "".join(value)
    raise TypeError(f"{type(value).__name__} is not a value of a record")


def _spell_out_infinities(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _spell_out_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spell_out_infinities(item) for item in value]
    return value
