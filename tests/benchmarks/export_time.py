"""How long an export with its proof takes, start to end, in a fresh process, beside torch.onnx.export alone.

    python -m tests.benchmarks.export_time [VARIANT ...]        (ViT-S/16 and ViT-B/16 at 224 pixels when none is named)

The peer does half the work: it writes a file and compares nothing. The ratio says what the proof, the original's copy and the
digests cost. Three interleaved rounds; the promise is at most 30 s for ViT-B/16 on two cores.
"""

import subprocess
import sys
import tempfile
import time

from tests.benchmarks import results
from tests.benchmarks.figures import ExportTime

PEER = """
import sys, torch
from vitdeploy.models.vit import build
from vitdeploy.zoo.variants import find
spec = find(sys.argv[1])
torch.onnx.export(build(spec), (torch.zeros(2, 3, spec.input.height, spec.input.width),), sys.argv[2], dynamo=True,
                  opset_version=20, dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), verbose=False)
"""


def main() -> None:
    """Measure and store."""
    parser = results.parser(__doc__)
    parser.add_argument("variants", nargs="*", default=["vit_small_patch16_224", "vit_base_patch16_224"])
    options = parser.parse_args()
    models: dict[str, dict[str, list[float]]] = {}
    for variant in options.variants:
        models[variant] = {"vitdeploy export": [], "torch.onnx.export": []}
        for _ in range(1 if options.quick else 3):
            with tempfile.TemporaryDirectory() as scratch:
                ours = [sys.executable, "-m", "vitdeploy", "export", variant, "-o", f"{scratch}/out"]
                theirs = [sys.executable, "-W", "ignore", "-c", PEER, variant, f"{scratch}/model.onnx"]
                for name, command in (("vitdeploy export", ours), ("torch.onnx.export", theirs)):
                    start = time.perf_counter()
                    subprocess.run(command, check=True, capture_output=True)
                    models[variant][name].append(time.perf_counter() - start)
                    results.say(f"{variant}: {name}: {models[variant][name][-1]:.1f} s")
    results.store("export_time", ExportTime(models), options)


if __name__ == "__main__":
    main()
