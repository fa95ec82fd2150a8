"""The verb `keygen`: a key pair to sign bundles with."""

from __future__ import annotations

from pathlib import Path

import msgspec

from vitdeploy.bundle import signature


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """A key pair that was written.

    Attributes:
        schema_version: Version of this record.
        private: File of the half that signs; for its owner only.
        public: File of the half that verifies; for every box.
        key: Fingerprint.
    """

    schema_version: int = 1
    private: str
    public: str
    key: str


def keygen(out: str | Path) -> Keys:
    """Make a key pair to sign bundles with.

    Args:
        out: File of the private half; the public half gets ``.pub`` behind its name.

    Raises:
        UsageError: VD2008, there is a key already, or the place can't be written.
        MachineError: VD4001, cryptography is not installed.
    """
    path = Path(out)
    public = signature.write_keys(signature.make_keys(), path)
    return Keys(private=str(path), public=str(public), key=signature.read_key(public).fingerprint)
