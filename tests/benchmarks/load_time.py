"""How long weights take to become a checked module, beside reading the file and building an empty module by hand.

    python tests/benchmarks/load_time.py [VARIANT]          (ViT-B/16 when none is named)

The peer reads the same file with `safetensors.torch.load_file` and constructs the same module; it checks nothing and does not
even put the one into the other. Nine interleaved rounds in one process, warm file cache; the promise is a ratio of at most 2.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file, save_file

from vitdeploy.checkpoints.safetensors import rebuild
from vitdeploy.models.vit import VisionTransformer, build
from vitdeploy.zoo.variants import find


def main() -> None:
    """Measure and print."""
    spec = find(sys.argv[1] if len(sys.argv) > 1 else "vit_base_patch16_224")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "weights.safetensors"
        save_file(build(spec).state_dict(), path)
        ours, theirs = [], []
        for _ in range(10):
            start = time.perf_counter()
            rebuild(spec, path)
            middle = time.perf_counter()
            sum(tensor.view(-1)[0].item() for tensor in load_file(path).values())  # touches every tensor's first page
            VisionTransformer(spec)
            ours.append(middle - start)
            theirs.append(time.perf_counter() - middle)
    ours, theirs = ours[1:], theirs[1:]
    print(f"{spec.name}: read, check and build {statistics.median(ours):.2f} s")
    print(f"{spec.name}: load_file and an empty module {statistics.median(theirs):.2f} s")
    print(f"ratio {statistics.median(a / b for a, b in zip(ours, theirs, strict=True)):.2f}")


if __name__ == "__main__":
    main()
