"""A release from a bundle that lies on the box already: other updaters (Mender, RAUC, a USB stick) bring files."""

from __future__ import annotations

from pathlib import Path

from vitdeploy import files
from vitdeploy.bundle import signature
from vitdeploy.bundle.archive import list_entries, read_parts
from vitdeploy.errors import DeviceError
from vitdeploy.fleet.agent.delivery import MANIFEST, read_delivery
from vitdeploy.fleet.agent.store import BUNDLE, CURRENT, RUNTIME, Store
from vitdeploy.fleet.agent.talk import Words

_LARGEST = 4 << 20
"""Bytes of a manifest, or of a signature."""


def take_bundle(store: Store, path: Path) -> Words:
    """Have a bundle's files lie where pushed ones arrive; whether they are to be trusted is asked there.

    It is checked with the vitdeploy of the release that is served now.

    Args:
        store: Locked.
        path: A ``.vdb`` file.

    Returns:
        What a push says of its bundle.

    Raises:
        DeviceError: VD5010, nothing is served yet; VD5009, it is no bundle.
        InputError: VD3030, as `list_entries`.
    """
    current = store.read_link(CURRENT)
    if current is None:
        message = "there is no release yet whose vitdeploy could check this one"
        raise DeviceError("VD5010", message, file=store.root, fix="push the first one")
    with files.open_regular(path) as stream:
        entries = list_entries(stream, path)
        small = {name: entry for name, entry in entries.items() if entry.size <= _LARGEST}
        texts = [
            b"".join(read_parts(stream, small[name])).decode(errors="replace") if name in small else ""
            for name in (MANIFEST, signature.FILE)
        ]
        runtime = (store.releases / current.folder / RUNTIME).stat().st_size
        shipment = read_delivery(texts[0], texts[1], current.files[RUNTIME], runtime)
        for name, size in shipment.sizes.items():
            entry, sha256 = entries.get(name.removeprefix(f"{BUNDLE}/")), shipment.release.files[name]
            if entry is not None and entry.size == size and store.find_file(sha256, size) is None:
                with files.new_file(store.incoming / sha256) as part:
                    part.writelines(read_parts(stream, entry))
    return {"manifest": texts[0], "signature": texts[1], "runtime_sha256": current.files[RUNTIME], "runtime_size": runtime}


def read_nothing(most: int) -> bytes:
    """What comes where there is no connection.

    Raises:
        DeviceError: VD5009, the bundle lacks what its manifest lists.
    """
    raise DeviceError("VD5009", f"the bundle lacks {most:,} bytes or more that its manifest lists", fix="bring it again")
