"""Files as they must be handled everywhere: read only where they are files, written whole or not at all, over nobody else's."""

from vitdeploy.files.leases import Lease, lease_folder, sweep_leases, temporary_folder
from vitdeploy.files.opening import inside, open_regular, read_bytes, sha256
from vitdeploy.files.outputs import Ours, check_output, discard, folder, hold
from vitdeploy.files.places import PathName, cache_folder, find_base
from vitdeploy.files.temporary import recover, sweep_inside
from vitdeploy.files.whole import check_file, need_space, new_file, write

__all__ = [
    "Lease",
    "Ours",
    "PathName",
    "cache_folder",
    "check_file",
    "check_output",
    "discard",
    "find_base",
    "folder",
    "hold",
    "inside",
    "lease_folder",
    "need_space",
    "new_file",
    "open_regular",
    "read_bytes",
    "recover",
    "sha256",
    "sweep_inside",
    "sweep_leases",
    "temporary_folder",
    "write",
]
