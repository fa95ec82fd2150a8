"""What does it cost that engines run in processes of their own? Whole commands, with isolation and without, in turn.

Without means: the same code in which `open_in_child` opens the plain backend here, and `quantize` works in its own process.
Run it on an idle machine: python tests/benchmarks/isolation.py [ROUNDS]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.conftest import TINY, write_artifact
from vitdeploy.data import synthetic

LIMIT_S = 0.5
PLAIN = """
import sys
from vitdeploy.backends import child, table
child.open_in_child = lambda name, artifact, config: table.load(name).open(artifact, config)
if sys.argv[1] == "quantize":
    import vitdeploy.verbs.quantizer
    from vitdeploy.quant.job import quantize_here
    vitdeploy.verbs.quantizer.quantize = quantize_here
"""
MAIN = "import sys; from vitdeploy.cli.commands import main; sys.exit(main(sys.argv[1:]))"
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
        "predict openvino": ["predict", model, str(folder / "images" / "0.png"), "-q", "--json", "--backend", "openvino"],
        "validate": ["validate", model, "-q", "--json", "--backend", "onnxruntime"],
        "quantize": ["quantize", model, "--calibration", images, "--no-verify", "-o", str(folder / "out"), "-q", "--json"],
    }


def seconds(code: str, arguments: list[str]) -> float:
    """One run, as a shell would see it."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main(rounds: int) -> int:
    """Print medians and the median difference of each pair; 1 when one is above the limit."""
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        print(f"| command | without, s | with, s | isolation costs, s (quartiles of {rounds} pairs) |\n|---|---|---|---|")
        for command, arguments in commands(Path(name)).items():
            times: dict[str, list[float]] = {form: [] for form in FORMS}
            for index in range(rounds + 1):
                for form in list(FORMS) if index % 2 else list(FORMS)[::-1]:
                    took = seconds(FORMS[form], arguments)
                    if index:  # the first pair warms the caches
                        times[form].append(took)
            apart = np.subtract(times["with"], times["without"])
            low, middle, high = np.quantile(apart, (0.25, 0.5, 0.75))
            worst = max(worst, middle)
            medians = {form: np.median(taken) for form, taken in times.items()}
            print(f"| {command} | {medians['without']:.2f} | {medians['with']:.2f} | {middle:+.2f} [{low:+.2f}, {high:+.2f}] |")
    print(f"\nlimit: {LIMIT_S} s a command; the largest median is {worst:.2f} s")
    return int(worst > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
