"""How long an export with its proof takes, start to end, in a fresh process, beside torch.onnx.export alone.

    python tests/benchmarks/export_time.py [VARIANT ...]        (ViT-S/16 and ViT-B/16 at 224 pixels when none is named)

The peer does half the work: it writes a file and compares nothing. The ratio says what the proof, the original's copy and the
digests cost. Three interleaved rounds; the promise is at most 30 s for ViT-B/16 on two cores.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEER = """
import sys, torch
from vitdeploy.models.vit import build
from vitdeploy.zoo.variants import find
spec = find(sys.argv[1])
torch.onnx.export(build(spec), (torch.zeros(2, 3, spec.input.height, spec.input.width),), sys.argv[2], dynamo=True,
                  opset_version=20, dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), verbose=False)
"""


def main() -> None:
    """Measure and print."""
    for variant in sys.argv[1:] or ["vit_small_patch16_224", "vit_base_patch16_224"]:
        seconds: dict[str, list[float]] = {"vitdeploy export": [], "torch.onnx.export": []}
        for _ in range(3):
            with tempfile.TemporaryDirectory() as scratch:
                ours = [str(Path(sys.executable).with_name("vitdeploy")), "export", variant, "-o", f"{scratch}/out"]
                theirs = [sys.executable, "-W", "ignore", "-c", PEER, variant, f"{scratch}/model.onnx"]
                for name, command in (("vitdeploy export", ours), ("torch.onnx.export", theirs)):
                    start = time.perf_counter()
                    subprocess.run(command, check=True, capture_output=True)
                    seconds[name].append(time.perf_counter() - start)
        for name, runs in seconds.items():
            print(
                f"{variant:24} {name:18} median {statistics.median(runs):5.1f} s, runs {', '.join(f'{run:.1f}' for run in runs)}"
            )


if __name__ == "__main__":
    main()
