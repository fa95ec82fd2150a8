"""How long `vitdeploy --help` takes, beside an empty Python and `python -c "import typer"`; the promise is below 0.2 s.

    python tests/benchmarks/startup.py

Median of 15 interleaved runs each, wall clock, warm file cache.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import typer'": [sys.executable, "-c", "import typer"],
    "vitdeploy --help": [str(Path(sys.executable).with_name("vitdeploy")), "--help"],
}


def main() -> None:
    """Measure and print."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(16):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    for name, runs in seconds.items():
        print(f"{name:28} {1000 * statistics.median(runs[1:]):6.0f} ms  (fastest {1000 * min(runs[1:]):.0f} ms)")


if __name__ == "__main__":
    main()
