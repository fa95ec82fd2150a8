"""What all benchmarks share: their options, and what is stored beside them when they end."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from tests.benchmarks import figures, tables
from vitdeploy import files, jsonfile
from vitdeploy.report import this_machine

PRIVATE = {"--work": "FOLDER", "--json": "FILE", "--peers": "PYTHON"}
"""Options with paths of this machine, and what they are called in what is stored."""
START, LOAD = time.monotonic(), os.getloadavg()[0]


def parser(description: str) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    shared = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared.add_argument("--json", type=Path, help="store the figures here (default: beside the script, for the page)")
    shared.add_argument("--quick", action="store_true", help="as little as possible, to see that it works; stored by --json only")
    return shared


def say(line: str) -> None:
    """Progress, to standard error."""
    print(f"{time.monotonic() - START:7.1f} s  {line}", file=sys.stderr, flush=True)


def store(name: str, measured: msgspec.Struct, options: argparse.Namespace) -> None:
    """Print the tables as the page has them, and store what they are made of."""
    result = figures.Result(
        benchmark=name,
        command=_command(name, sys.argv[1:]),
        taken=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        minutes=round((time.monotonic() - START) / 60, 1),
        load=(round(LOAD, 1), round(os.getloadavg()[0], 1)),
        machine=this_machine(),
        figures=measured,
    )
    print(tables.section(name, result), flush=True)
    path = options.json or (None if options.quick else figures.HERE / f"{name}.json")
    if path is not None:
        files.write(path, _anonymous(jsonfile.encode(result), options))
        say(f"stored in {path}; python -m tests.benchmarks.tables writes the page")


def _command(name: str, arguments: list[str]) -> str:
    words = [PRIVATE.get(before, word) for before, word in zip(["", *arguments], arguments, strict=False)]
    parts = [word.partition("=") for word in words]
    said = [f"{option}={PRIVATE.get(option, rest)}" if rest else option for option, _, rest in parts]
    return shlex.join(["python", "-m", f"tests.benchmarks.{name}", *said])


def _anonymous(text: str, options: argparse.Namespace) -> str:
    """Without this machine's folders, which errors may name."""
    work = getattr(options, "work", None)
    return text if work is None else text.replace(str(work), "FOLDER")
