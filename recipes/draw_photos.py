"""Cut calibration/photos out of 15 photographs that Debian and Python packages carry: 240 pieces in one tar shard.

    apt-get download lomiri-wallpapers-16.04 && dpkg-deb -x lomiri-wallpapers-16.04_*.deb source
    pip download --no-deps scikit-image==0.25.2 scikit-learn==1.6.1
    for wheel in scikit_*.whl; do python -m zipfile -e $wheel source; done
    python recipes/draw_photos.py --source source --out calibration/photos

Takes seconds and 200 MB of memory on any machine. Places and sizes of the pieces come from hashes, so the draw needs no random
generator. The bytes of a JPEG depend on the library that wrote it; its pixels do so hardly.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import tarfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vitdeploy import files

PIECES = 16
"""Of each photograph: the largest square in its middle, and 15 by chance."""
SIDE = 128
"""Pixels of a piece's side."""
SMALLEST = 0.25
"""Shortest side of a piece that is cut, as a share of the photograph's; never less than `SIDE` pixels."""
QUALITY = 85
SHARD = "photos.tar"


class Photo(NamedTuple):
    """A photograph.

    Attributes:
        name: In the shard.
        file: Where the unpacked packages have it.
    """

    name: str
    file: str


_DEBIAN, _SCIKIT_IMAGE, _SCIKIT_LEARN = "usr/share/backgrounds", "skimage/data", "sklearn/datasets/images"
PHOTOS = (
    Photo("fig", f"{_DEBIAN}/Picture_0B_by_freespace.jpg"),
    Photo("brushes", f"{_DEBIAN}/Picture_1A_by_freespace.jpg"),
    Photo("wine", f"{_DEBIAN}/Wine_by_Jakkub_Mede.jpg"),
    Photo("meadow", f"{_DEBIAN}/aitzgorri_by_Aitzol_Berasategi.jpg"),
    Photo("dogs", f"{_DEBIAN}/friends_by_Aitzol_Berasategi.jpg"),
    Photo("brook", f"{_DEBIAN}/life_by_Aitzol_Berasategi.jpg"),
    Photo("mountains", f"{_DEBIAN}/picosdeeuropa_by_Aitzol_Berasategi.jpg"),
    Photo("dandelion", f"{_DEBIAN}/seeding_by_Clements_Engelhardt.jpg"),
    Photo("sunset", f"{_DEBIAN}/sunset_by_Aitzol_Berasategi.jpg"),
    Photo("astronaut", f"{_SCIKIT_IMAGE}/astronaut.png"),
    Photo("cat", f"{_SCIKIT_IMAGE}/chelsea.png"),
    Photo("coffee", f"{_SCIKIT_IMAGE}/coffee.png"),
    Photo("rocket", f"{_SCIKIT_IMAGE}/rocket.jpg"),
    Photo("temple", f"{_SCIKIT_LEARN}/china.jpg"),
    Photo("flower", f"{_SCIKIT_LEARN}/flower.jpg"),
)


def choose_box(name: str, number: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The square of a photograph that becomes a piece: left, top, right, bottom, in pixels.

    Args:
        name: The photograph's.
        number: The piece's; 0 is the largest square in the middle.
        size: Width and height.
    """
    short = min(size)
    digest = hashlib.sha256(f"{name}/{number}".encode()).digest()
    scale, across, down = (int.from_bytes(digest[at : at + 4], "big") / 2**32 for at in (0, 4, 8))
    if number == 0:
        scale, across, down = 1.0, 0.5, 0.5
    side = max(SIDE, round(short * SMALLEST ** (1 - scale)))  # as many of half the size as of the whole
    left, top = (int(share * (whole - side)) for share, whole in zip((across, down), size, strict=True))
    return left, top, left + side, top + side


def cut(photo: Photo, source: Path) -> list[Image.Image]:
    """The pieces of a photograph, RGB, each `SIDE` x `SIDE`."""
    with Image.open(source / photo.file) as opened:
        whole = opened.convert("RGB")
    boxes = [choose_box(photo.name, number, whole.size) for number in range(PIECES)]
    return [whole.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box, reducing_gap=None) for box in boxes]


def make(source: Path, out: Path) -> None:
    """Write ``photos.tar`` and ``SHA256SUMS``.

    Args:
        source: Folder with the packages, unpacked.
        out: Folder to write to.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as shard:
        for photo in PHOTOS:
            for number, piece in enumerate(cut(photo, source)):
                stream = io.BytesIO()
                piece.save(stream, "JPEG", quality=QUALITY)
                member = tarfile.TarInfo(f"{photo.name}-{number:02}.jpg")
                member.size = len(stream.getvalue())
                shard.addfile(member, io.BytesIO(stream.getvalue()))
    files.write(out / SHARD, packed.getvalue())
    listed = sorted([SHARD, *(name for name in ("LICENSE",) if (out / name).is_file())])
    files.write(out / "SHA256SUMS", "".join(f"{files.sha256(out / name)}  {name}\n" for name in listed))


def main() -> None:
    """Read the command line and cut."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with the packages, unpacked")
    parser.add_argument("--out", type=Path, default=Path("calibration/photos"))
    options = parser.parse_args()
    make(options.source, options.out)
    print((options.out / "SHA256SUMS").read_text(), end="")


if __name__ == "__main__":
    main()
