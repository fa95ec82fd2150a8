"""How long `vitdeploy --help` takes, beside an empty Python and `python -c "import typer"`; the promise is below 0.2 s.

    python -m tests.benchmarks.startup

Median of 15 interleaved runs each, wall clock, warm file cache.
"""

import subprocess
import sys
import time

from tests.benchmarks import results
from tests.benchmarks.figures import Startup

MAIN = "import sys; from vitdeploy.cli.commands import main; sys.exit(main())"
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import typer'": [sys.executable, "-c", "import typer"],
    "vitdeploy --help": [sys.executable, "-c", MAIN, "--help"],
}


def main() -> None:
    """Measure and store."""
    options = results.parser(__doc__).parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(3 if options.quick else 16):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    results.store("startup", Startup({name: runs[1:] for name, runs in seconds.items()}), options)  # the first warms the cache


if __name__ == "__main__":
    main()
