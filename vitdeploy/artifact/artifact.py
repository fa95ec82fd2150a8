"""Models on disk and their provenance: a folder with the model's files and ``artifact.json``, the record of its making.

An artifact never changes: a verb reads one and writes the next, and `parent` is the `id` of the one before. A bare ``.onnx``
made elsewhere is accepted wherever an artifact is; its input contract comes from its metadata or from the caller.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from vitdeploy import files
from vitdeploy.artifact.recording import OURS, RECORD, Record, encode, read_record
from vitdeploy.errors import InputError, UsageError
from vitdeploy.files import inside, sha256
from vitdeploy.kinds import refuse_folder
from vitdeploy.onnxfile import check
from vitdeploy.onnxfile.precision import read_precision
from vitdeploy.recipe import QuantizeConfig
from vitdeploy.spec import ModelSpec
from vitdeploy.words import PORTABLE

METADATA_SPEC = "vitdeploy.spec"
"""Key of an ONNX file's metadata that holds the `ModelSpec` as JSON."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model on disk: the folder and its record."""

    folder: Path
    record: Record
    checked: Mapping[str, files.Identity] = field(default_factory=dict, compare=False, repr=False)
    """Which files were compared with their digests, by name; empty where nothing was."""

    @property
    def model(self) -> Path:
        """The file that an engine opens."""
        return self.folder / self.record.entry

    def locate(self, name: str) -> Path:
        """A file of the folder that something may open: one that the record lists, with its digest.

        Raises:
            InputError: VD3010, the record does not list it.
            TrustError: VD7001, it lies outside.
        """
        if self.record.files and name not in self.record.files:
            raise InputError("VD3010", f"does not list its file {name}", file=self.folder / RECORD, fix="make it again")
        return inside(self.folder, name)

    def require_unchanged(self) -> None:
        """See that what was compared with its digest is what lies there still: what was checked is what runs.

        Raises:
            InputError: VD3010, a file was replaced or written to since.
        """
        for name, identity in self.checked.items():
            if files.identify(self.folder / name) != identity:
                message = "was changed by somebody between its check and its use"
                raise InputError("VD3010", message, file=self.folder / name, fix="see who writes there, and try again")

    @property
    def weights(self) -> Path | None:
        """The state dict of the PyTorch original: in this folder, or in an artifact beside it; None when neither has it.

        It lives once, in what was exported, and what is made of that knows it by its digest: moved together, they find each
        other again.
        """
        if self.record.weights is not None:
            return self.folder / self.record.weights
        digest = self.record.origin.state_sha256
        if not digest or not self.record.files:  # never had one, or a bare or repaired file
            return None
        hinted = [] if self.record.original is None else [self.folder / self.record.original]
        beside = (path.parent for path in sorted(self.folder.resolve().parent.glob(f"*/{RECORD}")))
        return next((path for folder in (*hinted, *beside) if (path := _find_weights(folder, digest))), None)

    def explain_no_weights(self) -> str:
        """Why `weights` is None."""
        if self.record.origin.module:
            return f"is the code {self.record.origin.module}, which is imported only where --against names it"
        if not (digest := self.record.origin.state_sha256):
            return "does not carry the PyTorch original's weights"
        return f"does not carry the PyTorch original's weights (sha256 {digest[:12]}), and no artifact beside it has them"

    @property
    def spec(self) -> ModelSpec:
        """The model and its input contract."""
        return self.record.spec

    @property
    def engine(self) -> str | None:
        """The one engine that this file was made for, or None when any will do."""
        if self.record.kind != "onnx":
            return self.record.kind
        config = self.record.config
        return config.target if isinstance(config, QuantizeConfig) and config.target != PORTABLE else None

    @property
    def is_float(self) -> bool:
        """Whether it is an FP32 file: what everything else is made of, and compared with where PyTorch can't be run."""
        return self.record.kind == "onnx" and self.record.precision == "fp32"

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
        if not path.exists():
            files.recover(path.absolute())  # its writer was killed between two steps
        if path.is_dir():
            return cls._open_folder(path, verify)
        if not path.exists():
            raise InputError("VD3001", "does not exist", file=path)
        model = check.check_file(path).model
        text = model.metadata.get(METADATA_SPEC)
        if text is None:
            fix = "give an artifact folder, or write the file with `vitdeploy export`"
            raise InputError("VD3012", "carries no input contract", file=path, fix=fix)
        try:
            spec = msgspec.json.decode(text, type=ModelSpec)
        except (msgspec.MsgspecError, RecursionError, UsageError) as exc:
            raise InputError("VD3012", f"carries a broken input contract: {exc}", file=path) from exc
        return cls(path.parent, Record(entry=path.name, spec=spec, made_by="import", precision=read_precision(model)))

    @classmethod
    def take(cls, given: ArtifactLike) -> Artifact:
        """An artifact as it is, or `open` what a path names."""
        return given if isinstance(given, Artifact) else cls.open(Path(given))

    @classmethod
    def _open_folder(cls, folder: Path, verify: bool) -> Artifact:
        try:
            record = read_record(folder / RECORD)
        except FileNotFoundError:
            refuse_folder(folder)
            fix = "give a folder that a vitdeploy command wrote, or a .onnx file"
            raise InputError("VD3010", f"is not an artifact (no {RECORD} in it)", file=folder, fix=fix) from None
        checked: dict[str, files.Identity] = {}
        for name, digest in record.files.items():
            path = inside(folder, name)
            if not path.exists():
                raise InputError("VD3010", f"lacks its file {name}", file=folder, fix="make it again")
            if not verify:
                continue
            now, checked[name] = files.digest_file(path)
            if now != digest:
                message = f"changed after {record.made_by!r} wrote it ({now[:12]}, expected {digest[:12]})"
                raise InputError("VD3010", message, file=path, fix="make it again")
        for needed in (record.entry, record.weights):
            if needed is not None and needed not in record.files:
                raise InputError("VD3010", f"does not list its file {needed}", file=folder / RECORD, fix="make it again")
        artifact = cls(folder, record, checked)
        if verify:  # an engine may fall back to any of them
            for name in sorted({record.entry, *record.files} if record.kind == "onnx" else record.files):
                if name.endswith(".onnx") or (record.kind == "onnx" and name == record.entry):
                    artifact._agree(check.check_file(folder / name))
        return artifact

    def copy_weights(self, folder: Path) -> None:
        """Let the PyTorch original's weights, if there are any, come along into another artifact's folder.

        Raises:
            MachineError: VD4002, the disk has no room for them.
        """
        if self.weights is not None:
            files.need_space(folder, self.weights.stat().st_size)
            shutil.copyfile(self.weights, folder / self.weights.name)

    def locate_original(self, folder: Path) -> str | None:
        """What an artifact in ``folder`` that is made of this one is compared with, as its `Record.original` says it."""
        if self.record.packed:
            return None
        place = None if self.weights is None else self.weights.parent
        if place is None and self.is_float:
            place = self.folder if self.record.files else self.model
        if place is None and self.record.original is not None:
            place = self.folder / self.record.original
        return None if place is None else Path(os.path.relpath(place.resolve(), folder.resolve())).as_posix()

    def _agree(self, checked: check.Checked) -> None:
        """Refuse a record whose contract is not the one inside the model: an edited mean would be wrong in silence.

        Data beside the model are its bytes too: those must be listed.
        """
        for beside in checked.beside:
            self.locate(Path(checked.model.path.relative_to(self.folder).parent, beside).as_posix())
        text = checked.model.metadata.get(METADATA_SPEC)
        if text is not None and not is_same_spec(text, self.spec):
            raise InputError(
                "VD3010", "has another spec than the model beside it", file=self.folder / RECORD, fix="make it again"
            )


def is_same_spec(text: str, spec: ModelSpec) -> bool:
    """Whether a text is this spec as JSON; one written when specs had fewer fields is, when it means the same."""
    try:
        return msgspec.json.decode(text, type=ModelSpec) == spec
    except (msgspec.MsgspecError, RecursionError, UsageError):
        return False


ArtifactLike = Artifact | str | os.PathLike[str]
"""An artifact, or a path that `Artifact.open` opens."""


def sanitize(artifact: Artifact, folder: Path) -> tuple[Artifact, tuple[str, ...]]:
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
    record = msgspec.structs.replace(artifact.record, entry=path.name, weights=None, original=None, files={})
    return Artifact(path.parent, record), notes


def check_place(out: Path, *, sources: Iterable[Path], replaces: Callable[[Record], bool], force: bool = False) -> None:
    """Refuse a folder that a new artifact may not take, before any work is done.

    Args:
        out: The folder to be written.
        sources: What the artifact is made from, on disk; see `files.check_output`.
        replaces: Whether the new artifact is the next of one that lies there: made by the same verb, from the same source.
        force: Replace any artifact that lies there, but never a source.

    Raises:
        UsageError: VD2008.
    """
    files.check_output(out, ours=OURS, sources=sources)
    if force or not (out / RECORD).is_file():
        return
    old = read_record(out / RECORD, edited=True)
    if not replaces(old):
        what = f"holds another artifact, made by {old.made_by!r} from {old.spec.name}"
        raise UsageError("VD2008", what, file=out, fix="choose another folder, or replace it with --force")


def _find_weights(folder: Path, digest: str) -> Path | None:
    """The weights with this digest in an artifact's folder; what is no artifact, or is damaged, has none."""
    try:
        record = read_record(folder / RECORD)
    except (FileNotFoundError, InputError):
        return None
    if record.weights is None or record.files.get(record.weights) != digest:
        return None
    path = folder / record.weights
    return path if path.is_file() else None


def set_key(artifact: Artifact, key: str) -> Artifact:
    """The artifact with another `Record.key`, on disk too: the one thing of its record that its maker does not know."""
    record = msgspec.structs.replace(artifact.record, key=key)
    files.write(artifact.folder / RECORD, encode(record))
    return Artifact(artifact.folder, record, artifact.checked)
