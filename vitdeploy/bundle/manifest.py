"""What a bundle says of itself: ``manifest.json``, in the one form that says the same with the same bytes."""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

from vitdeploy.words import RecordPrecision, Task

FILE = "manifest.json"
SCHEMA = 1
LARGEST = 4 << 20
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class PackedFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a bundle.

    Attributes:
        size: In bytes.
        sha256: Of its bytes.
    """

    size: _Count
    sha256: _Digest


class Tried(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine gave for the sample images where the bundle was packed.

    Attributes:
        version: Of the engine.
        distance: From the outputs that the bundle holds, as `proof.engine.distance`; 0 for the engine that gave these.
    """

    version: str
    distance: float


class PackedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of a bundle: the same network as the others, in another form.

    Attributes:
        folder: Where its artifact lies in the bundle.
        id: `Artifact.id` of that.
        precision: The arithmetic its weights were prepared for.
        engine: The one engine that it was made for; None when any will do.
        task: What its output is.
        size: Bytes of its files.
        limit: Largest distance of an engine's outputs from those that the bundle holds, from which it does not run as it should.
        tried: Engine to what it gave where the bundle was packed.
        original: Distance of the outputs from the original's; None where neither PyTorch nor an FP32 file was there.
    """

    folder: str
    id: _Digest
    precision: RecordPrecision
    engine: str | None = None
    task: Task
    size: _Count
    limit: float
    tried: dict[str, Tried] = {}
    original: float | None = None


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the weights came from.

    Attributes:
        library: The library that wrote the checkpoint; "" when it is not known.
        architecture: What it was taken for.
        files: The checkpoint's files, name to SHA-256.
        random_seed: Seed of random weights.
    """

    library: str = ""
    architecture: str = ""
    files: dict[str, str] = {}
    random_seed: int | None = None


class Needs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a box must have.

    Attributes:
        engines: One of these engines, by name.
        disk_mib: For the bundle and its largest model beside it.
    """

    engines: tuple[str, ...]
    disk_mib: _Count


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle holds, and what it takes to run it.

    Attributes:
        schema_version: Version of this record.
        name: Of what is shipped; releases of one name follow each other.
        release: Counts up: a box does not go back to a smaller one unasked.
        version: What people call this release.
        licence: Of the weights, as SPDX writes it.
        models: Forms of the model, the one to prefer first.
        samples: Names of the sample images, in the order of the outputs that the bundle holds for them.
        source: Where the weights came from.
        needs: What a box must have.
        max_latency_ms: Most that an image may take on a box (median, one image at a time); None for any time.
        gates: Limits that the model was held against before it was packed, in words; all hold.
        tools: Library to version, where it was packed.
        files: Every file but this one and the signature.
    """

    schema_version: int = SCHEMA
    name: _Name
    release: Annotated[int, msgspec.Meta(ge=1)]
    version: str = ""
    licence: str = ""
    models: Annotated[tuple[PackedModel, ...], msgspec.Meta(min_length=1)]
    samples: tuple[str, ...]
    source: Source = Source()
    needs: Needs
    max_latency_ms: float | None = None
    gates: tuple[str, ...] = ()
    tools: dict[str, str] = {}
    files: dict[str, PackedFile]

    def encode(self) -> bytes:
        """The manifest as JSON: keys sorted, no spaces, so that equal manifests are equal bytes."""
        return msgspec.json.encode(self, order="sorted")

    @property
    def id(self) -> str:
        """SHA-256 of `encode`: it stands for every byte of the bundle."""
        return hashlib.sha256(self.encode()).hexdigest()


def read_manifest(content: bytes) -> Manifest:
    """A manifest from its bytes.

    Raises:
        ValueError: It is none, of another version, or not written as `Manifest.encode` writes it.
    """
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except RecursionError as exc:
        raise ValueError("nested too deep") from exc
    if manifest.schema_version != SCHEMA:
        raise ValueError(f"schema {manifest.schema_version}; this vitdeploy reads {SCHEMA}")
    if manifest.encode() != content:
        raise ValueError("not in canonical form")
    return manifest
