"""Draw calibration/fashion-mnist from the whole of Fashion-MNIST: 512 training images and 2,000 test images.

    python recipes/draw_fashion_mnist.py --source /usr/share/datasets/fashion-mnist --out calibration/fashion-mnist

Takes seconds and 100 MB of memory on any machine; the source is Debian's package dataset-fashion-mnist. Images are
drawn per class by the hash of seed, split and number, so the draw needs no random generator and is the same everywhere.
The bytes in the .gz files also depend on zlib; the recorded digests are those of the unpacked arrays and of the files.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitdeploy import files
from vitdeploy.data import idx

SEED = 20170825
"""The day of the data set's paper, arXiv:1708.07747."""

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""Class names by number. Source: arXiv:1708.07747, table 2, as the data set's README spells them."""

DRAWS = (("train", "calibration", 512), ("t10k", "evaluation", 2000))
"""From which split, into which, how many images."""


def draw(labels: NDArray[np.uint8], split: str, count: int, seed: int) -> NDArray[np.intp]:
    """Numbers of the images to take: as many of each class as of any other, give or take one, in mixed order.

    Args:
        labels: uint8 [N].
        split: Name of the split, so that splits are drawn independently.
        count: Images to take; at most N.
        seed: Which draw.

    Returns:
        intp [count], distinct, in the order of their hashes.
    """

    def key(index: int) -> bytes:
        return hashlib.sha256(f"{seed}/{split}/{index}".encode()).digest()

    taken: list[int] = []
    for number in range(len(CLASSES)):
        share = count // len(CLASSES) + (number < count % len(CLASSES))
        taken += sorted(np.flatnonzero(labels == number).tolist(), key=key)[:share]
    return np.array(sorted(taken, key=key), np.intp)


def make(source: Path, out: Path, seed: int = SEED) -> dict[str, str]:
    """Write the four IDX files, ``classes.txt`` and ``SHA256SUMS``.

    Args:
        source: Folder with the four original ``.gz`` files.
        out: Folder to write to.
        seed: Which draw.

    Returns:
        File name to the SHA-256, in hex, of what it holds unpacked.
    """
    unpacked, seen = {}, set()
    for split, name, count in DRAWS:
        images = idx.read(source / f"{split}-images-idx3-ubyte.gz", 3)
        labels = idx.read(source / f"{split}-labels-idx1-ubyte.gz", 1)
        taken = draw(labels, split, count, seed)
        drawn = {image.tobytes() for image in images[taken]}
        if len(drawn) != count or drawn & seen:
            raise SystemExit(f"{name}: an image was drawn twice")
        seen |= drawn
        for kind, array in (("images-idx3", images[taken]), ("labels-idx1", labels[taken])):
            file = f"{name}-{kind}-ubyte.gz"
            files.write(out / file, idx.pack(array))
            unpacked[file] = hashlib.sha256(array.tobytes()).hexdigest()
    files.write(out / "classes.txt", "".join(f"{name}\n" for name in CLASSES))
    listed = sorted([*unpacked, "classes.txt", *(name for name in ("LICENSE",) if (out / name).is_file())])
    files.write(out / "SHA256SUMS", "".join(f"{files.sha256(out / name)}  {name}\n" for name in listed))
    return unpacked


def main() -> None:
    """Read the command line, draw, and show the digests of the unpacked arrays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with the four original .gz files")
    parser.add_argument("--out", type=Path, default=Path("calibration/fashion-mnist"))
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    for name, digest in make(options.source, options.out, options.seed).items():
        print(f"{digest}  {name} (unpacked array)")


if __name__ == "__main__":
    main()
