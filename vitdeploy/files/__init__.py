"""Files as they must be handled everywhere: read only where they are files, written whole or not at all, over nobody else's."""

from vitdeploy.files.leases import Lease, lease_folder, sweep_leases, temporary_folder
from vitdeploy.files.opening import (
    LARGEST_TEXT,
    Identity,
    digest_file,
    identify,
    inside,
    open_regular,
    read_bytes,
    read_text,
    sha256,
)
from vitdeploy.files.outputs import Ours, check_output, discard, flush_tree, folder, hold
from vitdeploy.files.places import PathName, cache_folder, find_base
from vitdeploy.files.temporary import recover, sweep_inside
from vitdeploy.files.whole import check_file, flush_folder, need_space, new_file, write

__all__ = [
    "LARGEST_TEXT",
    "Identity",
    "Lease",
    "Ours",
    "PathName",
    "cache_folder",
    "check_file",
    "check_output",
    "digest_file",
    "discard",
    "find_base",
    "flush_folder",
    "flush_tree",
    "folder",
    "hold",
    "identify",
    "inside",
    "lease_folder",
    "need_space",
    "new_file",
    "open_regular",
    "read_bytes",
    "read_text",
    "recover",
    "sha256",
    "sweep_inside",
    "sweep_leases",
    "temporary_folder",
    "write",
]
