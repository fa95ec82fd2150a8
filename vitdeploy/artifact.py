"""Models on disk and their provenance: a folder with the model's files and ``artifact.json``, the record of its making.

An artifact never changes: a verb reads one and writes the next, and `parent` is the `id` of the one before. A bare ``.onnx``
made elsewhere is accepted wherever an artifact is; its input contract comes from its metadata or from the caller.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import msgspec

from vitdeploy.errors import InputError, UsageError
from vitdeploy.files import inside, sha256
from vitdeploy.onnxfile import check
from vitdeploy.spec import ModelSpec
from vitdeploy.words import PORTABLE, RecordPrecision

RECORD = "artifact.json"
SCHEMA = 1
METADATA_SPEC = "vitdeploy.spec"
"""Key of an ONNX file's metadata that holds the `ModelSpec` as JSON."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``artifact.json`` says.

    Attributes:
        schema_version: Version of this record.
        kind: What the bytes are: ``onnx``, or what the backend of that name has compiled.
        precision: The arithmetic the weights were prepared for.
        entry: The file that an engine opens.
        weights: The PyTorch original's state dict (safetensors), or None.
        spec: The model and its input contract, as this file takes it.
        made_by: The verb that wrote it.
        config: That verb's settings.
        origin: Where the weights came from: file, SHA-256, or the seed of random ones.
        proof: What was run before the artifact was accepted, with the numbers.
        tools: Library to version.
        files: Name to SHA-256 of every file but the record.
        key: Digest of everything the artifact was made from; equal keys need no second making.
        parent: `Artifact.id` of the artifact it was made from.
    """

    schema_version: int = SCHEMA
    kind: Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]{1,40}$")] = "onnx"
    precision: RecordPrecision = "fp32"
    entry: str = "model.onnx"
    weights: str | None = None
    spec: ModelSpec
    made_by: str
    config: dict[str, Any] = {}
    origin: dict[str, Any] = {}
    proof: dict[str, Any] = {}
    tools: dict[str, str] = {}
    files: dict[str, str] = {}
    key: str = ""
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model on disk: the folder and its record."""

    folder: Path
    record: Record

    @property
    def model(self) -> Path:
        """The file that an engine opens."""
        return self.folder / self.record.entry

    @property
    def weights(self) -> Path | None:
        """The state dict of the PyTorch original, when the artifact carries it."""
        return None if self.record.weights is None else self.folder / self.record.weights

    @property
    def spec(self) -> ModelSpec:
        """The model and its input contract."""
        return self.record.spec

    @property
    def engine(self) -> str | None:
        """The one engine that this file was made for, or None when any will do."""
        if self.record.kind != "onnx":
            return self.record.kind
        target = self.record.config.get("target") if self.record.made_by == "quantize" else None
        return None if target in (None, PORTABLE) else str(target)

    @property
    def name(self) -> str:
        """Name for tables: the model's."""
        return self.spec.name

    @property
    def id(self) -> str:
        """SHA-256 over names and digests of the files: equal ids hold equal bytes."""
        listed = self.record.files or {self.record.entry: sha256(self.model)}  # a bare file has no record of its own
        return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> Artifact:
        """Read an artifact, or a bare ``.onnx`` that carries our metadata.

        Args:
            path: An artifact's folder, or an ONNX file.
            verify: Compare every file with its recorded digest.

        Raises:
            InputError: VD3001 nothing there; VD3010 unreadable record or changed file; VD3011 not ONNX; VD3012 no contract;
                VD3027 an ONNX file that would crash an engine.
            TrustError: VD7001, the record or the model names a file outside its folder; VD7005, foreign operators.
        """
        if path.is_dir():
            return cls._open_folder(path, verify)
        if not path.exists():
            raise InputError("VD3001", "does not exist", file=path)
        text = check.check_file(path).model.metadata.get(METADATA_SPEC)
        if text is None:
            fix = "give an artifact folder, or write the file with `vitdeploy export`"
            raise InputError("VD3012", "carries no input contract", file=path, fix=fix)
        try:
            spec = msgspec.json.decode(text, type=ModelSpec)
        except (msgspec.MsgspecError, RecursionError, UsageError) as exc:
            raise InputError("VD3012", f"carries a broken input contract: {exc}", file=path) from exc
        return cls(path.parent, Record(entry=path.name, spec=spec, made_by="import"))

    @classmethod
    def _open_folder(cls, folder: Path, verify: bool) -> Artifact:
        try:
            record = msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
        except FileNotFoundError:
            fix = "give a folder that a vitdeploy command wrote, or a .onnx file"
            raise InputError("VD3010", f"is not an artifact (no {RECORD} in it)", file=folder, fix=fix) from None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError, UsageError) as exc:
            raise InputError("VD3010", f"has an unreadable record: {exc}", file=folder / RECORD, fix="make it again") from exc
        if record.schema_version != SCHEMA:
            message = f"has schema version {record.schema_version}, this vitdeploy reads {SCHEMA}"
            raise InputError("VD3010", message, file=folder / RECORD, fix="make it again with this version")
        for name, digest in record.files.items():
            path = inside(folder, name)
            if not path.is_file():
                raise InputError("VD3010", f"lacks its file {name}", file=folder, fix="make it again")
            if verify and (found := sha256(path)) != digest:
                message = f"changed after {record.made_by!r} wrote it ({found[:12]}, expected {digest[:12]})"
                raise InputError("VD3010", message, file=path, fix="make it again")
        for needed in (record.entry, record.weights):
            if needed is not None and needed not in record.files:
                raise InputError("VD3010", f"does not list its file {needed}", file=folder / RECORD, fix="make it again")
        artifact = cls(folder, record)
        if verify and record.kind == "onnx":
            artifact._agree(check.check_file(artifact.model))
        elif verify:  # what an engine may fall back to
            for name in (name for name in record.files if name.endswith(".onnx")):
                check.check_file(folder / name)
        return artifact

    def _agree(self, checked: check.Checked) -> None:
        """Refuse a record whose contract is not the one inside the model: an edited mean would be wrong in silence."""
        text = checked.model.metadata.get(METADATA_SPEC)
        if text is not None and text != msgspec.json.encode(self.spec).decode():
            raise InputError(
                "VD3010", "has another spec than the model beside it", file=self.folder / RECORD, fix="make it again"
            )


def sanitized(artifact: Artifact, folder: Path) -> tuple[Artifact, tuple[str, ...]]:
    """An ONNX artifact as engines may see it.

    Args:
        artifact: Its kind is ``onnx``.
        folder: Where a repaired copy goes.

    Returns:
        Itself, or one of a repaired copy, without the PyTorch original; and what was repaired, a line each.

    Raises:
        InputError: As `check.check_file`.
        TrustError: As `check.check_file`.
        MachineError: VD4002, the disk is full.
    """
    path, notes = check.sanitize(artifact.model, folder)
    if path == artifact.model:
        return artifact, notes
    record = msgspec.structs.replace(artifact.record, entry=path.name, weights=None, files={})
    return Artifact(path.parent, record), notes


def seal(folder: Path, record: Record) -> Record:
    """Write ``artifact.json`` beside finished files, with their digests; the record that was written."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    record = msgspec.structs.replace(record, files={name: sha256(folder / name) for name in names})
    raw = msgspec.json.format(msgspec.json.encode(record), indent=2)
    (folder / RECORD).write_bytes(raw + b"\n")
    return record


def versions(*libraries: str) -> dict[str, str]:
    """Installed versions for the record; packages that are not there are left out."""
    found = {}
    for name in ("vitdeploy", *libraries):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
