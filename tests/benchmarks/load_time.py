"""How long weights take to become a checked module, beside reading the file and building an empty module by hand.

    python -m tests.benchmarks.load_time [VARIANT]          (ViT-B/16 when none is named)

The peer reads the same file with `safetensors.torch.load_file` and constructs the same module; it checks nothing and does not
even put the one into the other. Nine interleaved rounds in one process, warm file cache; the promise is a ratio of at most 2.
"""

import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.benchmarks import results
from tests.benchmarks.figures import LoadTime
from vitdeploy.checkpoints.safetensors import rebuild
from vitdeploy.models.vit import VisionTransformer, build
from vitdeploy.zoo.variants import find


def main() -> None:
    """Measure and store."""
    parser = results.parser(__doc__)
    parser.add_argument("variant", nargs="?", default="vit_base_patch16_224")
    options = parser.parse_args()
    spec = find(options.variant)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "weights.safetensors"
        save_file(build(spec).state_dict(), path)
        ours, theirs = [], []
        for _ in range(2 if options.quick else 10):
            start = time.perf_counter()
            rebuild(spec, path)
            middle = time.perf_counter()
            sum(tensor.view(-1)[0].item() for tensor in load_file(path).values())  # touches every tensor's first page
            VisionTransformer(spec)
            ours.append(middle - start)
            theirs.append(time.perf_counter() - middle)
    results.store("load_time", LoadTime(spec.name, ours[1:], theirs[1:]), options)  # the first warms the cache


if __name__ == "__main__":
    main()
