"""What does it cost that engines run in processes of their own? Whole commands, with isolation and without, in turn.

    python -m tests.benchmarks.isolation [--rounds 10]

Without means: the same code, told that it is in such a process already; and `quantize` does its work where it is. Wants an
otherwise idle machine. Ends with 1 when a command pays more than the limit.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from tests.benchmarks import results
from tests.benchmarks.figures import Isolation
from tests.conftest import TINY, write_artifact
from vitdeploy import isolate
from vitdeploy.data import synthetic

LIMIT_S = 0.5
PLAIN = """
import importlib
from vitdeploy import isolate

def run(target, argument, **_):
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)(argument)

isolate.is_child, isolate.run, isolate.report_progress = lambda: True, run, lambda *_: None
"""
MAIN = "import sys; from vitdeploy.cli.commands import main; sys.exit(main(sys.argv[1:]))"
REPLACED = (isolate.is_child, isolate.run, isolate.report_progress)
"""What `PLAIN` puts others in the place of: under these names."""
FORMS = {"with": MAIN, "without": PLAIN + MAIN}


def commands(folder: Path) -> dict[str, list[str]]:
    """A tiny model and a few images: what is left is starting and ending."""
    artifact = write_artifact(folder / "artifact", TINY)
    (folder / "images").mkdir()
    for index, pixels in enumerate(synthetic.pixels(16, TINY.input)):
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
    model, images = str(artifact.folder), str(folder / "images")
    return {
        "predict": ["predict", model, str(folder / "images" / "0.png"), "-q", "--json"],
        "predict --backend openvino": [
            "predict",
            model,
            str(folder / "images" / "0.png"),
            "-q",
            "--json",
            "--backend",
            "openvino",
        ],
        "validate": ["validate", model, "-q", "--json", "--backend", "onnxruntime"],
        "quantize": ["quantize", model, "--calibration", images, "--no-verify", "-o", str(folder / "out"), "-q", "--json"],
    }


def seconds(code: str, arguments: list[str]) -> float:
    """One run, as a shell would see it."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main() -> int:
    """Measure and store; 1 when a median difference is above the limit."""
    parser = results.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    times: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for command, arguments in commands(Path(name)).items():
            times[command] = {form: [] for form in FORMS}
            for index in range((1 if options.quick else options.rounds) + 1):
                for form in list(FORMS) if index % 2 else list(FORMS)[::-1]:
                    took = seconds(FORMS[form], arguments)
                    if index:  # the first pair warms the caches
                        times[command][form].append(took)
            results.say(command)
    results.store("isolation", Isolation(times, LIMIT_S), options)
    apart = [[a - b for a, b in zip(forms["with"], forms["without"], strict=True)] for forms in times.values()]
    return int(max(map(statistics.median, apart)) > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
