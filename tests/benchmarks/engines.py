"""Latency of exported FP32 ViTs in each engine beside PyTorch, interleaved, as `vitdeploy bench` measures it.

    python tests/benchmarks/engines.py [VARIANT ...]          (vit_small_patch16_224 when none is named)

Random weights: latency does not depend on them. Batch 1 and 8, all cores, 10 rounds. Wants an otherwise idle machine; the
report says when it was not.
"""

import sys
import tempfile
from pathlib import Path

import vitdeploy as vd
from vitdeploy.render import console


def main() -> None:
    """Export, measure, print."""
    for variant in sys.argv[1:] or ["vit_small_patch16_224"]:
        with tempfile.TemporaryDirectory() as scratch:
            config = vd.ExportConfig(prove_batches=(1, 2, 3))
            artifact = vd.export(vd.ModelConfig(source=variant), config, Path(scratch) / "out")
            console.report(vd.bench([artifact], vd.BenchConfig(batches=(1, 8), rounds=10, seconds=1.0)))


if __name__ == "__main__":
    main()
