"""The verb `pack`: what was exported and quantized becomes one thing to ship, which proves itself where it arrives."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from vitdeploy import files, machine
from vitdeploy.artifact import Artifact, ArtifactLike
from vitdeploy.backends.table import TABLE, list_engines
from vitdeploy.bundle import archive, manifest, signature
from vitdeploy.bundle.bom import write_bom
from vitdeploy.bundle.bundle import BOM, EVIDENCE, open_bundle
from vitdeploy.bundle.manifest import Manifest, Needs, PackedFile, Source
from vitdeploy.bundle.packing import write_forms
from vitdeploy.errors import InputError, UsageError, VitdeployError
from vitdeploy.progress import Progress, silent
from vitdeploy.recipe import QuantizeConfig
from vitdeploy.render.verdicts import format_gate
from vitdeploy.report import read_verdict


class PackConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle says of itself.

    Attributes:
        name: Of what is shipped; None is the model's.
        release: Counts up with what is shipped under one name.
        version: What people call this release.
        licence: Of the weights, as SPDX writes it (``Apache-2.0``).
        max_latency_ms: Most that an image may take on a box, in ms.
        gate: A verdict that `gate` wrote, which goes along; it must have passed.
        sign: File of the private key to sign with.
    """

    name: str | None = None
    release: int = 1
    version: str = ""
    licence: str = ""
    max_latency_ms: float | None = None
    gate: str | None = None
    sign: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no bundle may say."""
        if self.release < 1:
            raise UsageError("VD2003", f"release is {self.release}", fix="count from 1")
        if self.name is not None and not archive.is_name(self.name):
            raise UsageError("VD2003", f"name is {self.name!r}", fix="use letters, digits and ._- only")
        if self.max_latency_ms is not None and not 0 < self.max_latency_ms < float("inf"):
            raise UsageError("VD2003", f"max_latency_ms is {self.max_latency_ms}", fix="use a number of ms above 0")


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that was written.

    Attributes:
        schema_version: Version of this record.
        path: Where.
        id: Of the release: SHA-256 of its manifest.
        size: Bytes of its files.
        key: Fingerprint of the key that signed it; "" for none.
        notes: What a reader should know.
        manifest: What it holds.
    """

    schema_version: int = 1
    path: str
    id: str
    size: int
    key: str
    notes: tuple[str, ...]
    manifest: Manifest


def pack(
    artifacts: Sequence[ArtifactLike],
    config: PackConfig | None = None,
    out: str | Path = "bundle.vdb",
    *,
    force: bool = False,
    progress: Progress = silent,
) -> Packed:
    """Pack forms of one model into a bundle, run each on sample images, and sign what came of it.

    Args:
        artifacts: ONNX artifacts of one network: the one that a box should prefer first.
        config: What the bundle says of itself; None is no more than it must.
        out: The bundle: one file if it ends in ``.vdb``, else a folder.
        force: Replace another bundle that lies there.
        progress: Hears of every model.

    Returns:
        What was written. The same artifacts, settings and engines give the same bytes, but for the signature.

    Raises:
        UsageError: VD2010, no artifact, one that is compiled or was calibrated on noise, two models, or no passed verdict;
            VD2008, the place can't be written, or holds another bundle.
        InputError: As `Artifact.open`, `report.read_verdict` and `signature.sign`.
        MachineError: VD4002, the disk is full; as `packing.write_forms`, and VD4001, cryptography is not installed.
    """
    config, out = config or PackConfig(), Path(out)
    opened = [Artifact.take(artifact) for artifact in artifacts]
    _require_fit(opened)
    _read_gates(config)  # a verdict that is no pass costs no minutes
    name = config.name or _clean(opened[0].name)
    _check_place(out, opened, name, force=force)
    with _stage(out) as folder:
        written = _write(opened, config, name, folder, progress)
        key = _sign(written, config, folder)
    size = sum(each.size for each in written.files.values())
    notes = _note(opened, written, config)
    return Packed(path=str(out), id=written.id, size=size, key=key, notes=notes, manifest=written)


def _write(opened: Sequence[Artifact], config: PackConfig, name: str, folder: Path, progress: Progress) -> Manifest:
    """Everything but the signature into a bundle's folder, the manifest last."""
    models, samples = write_forms(opened, folder, progress)
    source, version = _name_source(opened[0]), config.version or str(config.release)
    bom = write_bom(name=name, version=version, licence=config.licence, spec=opened[0].spec, models=models, source=source)
    (folder / BOM).write_bytes(bom)
    if config.gate is not None:
        (folder / EVIDENCE).mkdir()
        shutil.copyfile(config.gate, folder / EVIDENCE / "verdict.json")
    listed = _list_files(folder)
    engines = sorted({engine for model in models for engine in model.tried})
    written = Manifest(
        name=name,
        release=config.release,
        version=config.version,
        licence=config.licence,
        models=models,
        samples=samples,
        source=source,
        needs=Needs(engines=tuple(engines), disk_mib=sum(each.size for each in listed.values()) * 2 // 2**20 + 1),
        max_latency_ms=config.max_latency_ms,
        gates=_read_gates(config),
        tools=machine.find_versions("numpy", "pillow", *(TABLE[each].package for each in list_engines())),
        files=listed,
    )
    (folder / manifest.FILE).write_bytes(written.encode())
    return written


def _require_fit(opened: Sequence[Artifact]) -> None:
    if not opened:
        raise UsageError("VD2010", "nothing to pack", fix="give an artifact that `vitdeploy export` or `quantize` wrote")
    for artifact in opened:
        if artifact.record.kind != "onnx":
            fix = f"pack what it was compiled from; on the box: vitdeploy compile BUNDLE --backend {artifact.record.kind} -o OUT"
            message = f"was compiled for {artifact.record.kind} on this machine; a bundle holds what any box can run"
            raise UsageError("VD2010", message, file=artifact.folder, fix=fix)
        made = artifact.record.config
        if isinstance(made, QuantizeConfig) and made.calibration == "random":
            fix = "quantize it with images like those of deployment (--data DIR)"
            raise UsageError("VD2010", "was calibrated on random images", file=artifact.folder, fix=fix)
        if _ignore_tensor(artifact) != _ignore_tensor(opened[0]):
            message = f"is another model than {opened[0].folder}, or takes other images"
            raise UsageError("VD2010", message, file=artifact.folder, fix="pack forms of one model together")


def _ignore_tensor(artifact: Artifact) -> Any:  # noqa: ANN401 (compared only)
    """What must be the same in all forms of a model: everything but the type that the file takes."""
    spec = artifact.spec
    return msgspec.structs.replace(spec, input=msgspec.structs.replace(spec.input, tensor="float32-nchw"))


def _read_gates(config: PackConfig) -> tuple[str, ...]:
    if config.gate is None:
        return ()
    verdict = read_verdict(Path(config.gate))
    if not verdict.passed:
        message = f"is no pass: {verdict.outcome}"
        raise UsageError("VD2010", message, file=config.gate, fix="pack what passes its gate, or leave --gate out")
    return tuple(format_gate(gate) for gate in verdict.gates)


def _name_source(artifact: Artifact) -> Source:
    origin = artifact.record.origin
    known = {origin.file: origin.sha256} if origin.file and origin.sha256 else {}
    return Source(
        library=origin.source,
        architecture=origin.architecture,
        files=origin.files or known,
        random_seed=origin.random_seed,
    )


def _clean(name: str) -> str:
    """A model's name as a bundle may be called."""
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in name)
    return kept.strip(".-")[:64] or "model"


def _list_names(folder: Path) -> set[str]:
    try:
        packed = manifest.read_manifest(files.read_bytes(folder / manifest.FILE, manifest.LARGEST))
    except (ValueError, OSError) as exc:
        raise InputError("VD3030", f"is none that vitdeploy wrote: {exc}", file=folder / manifest.FILE) from exc
    return {manifest.FILE, signature.FILE, *packed.files}


OURS = files.Ours(manifest.FILE, _list_names)
"""How a folder is known to be a bundle."""


def _list_files(folder: Path) -> dict[str, PackedFile]:
    listed = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        if not archive.is_name(name):
            message = f"its file {name!r} can't be packed: letters, digits and ._- only, at most 100 in all"
            raise InputError("VD3030", message, file=folder, fix="rename it, and export again")
        listed[name] = PackedFile(size=path.stat().st_size, sha256=files.sha256(path))
    return listed


def _sign(written: Manifest, config: PackConfig, folder: Path) -> str:
    """Sign a bundle's folder; the fingerprint of the key, "" for none."""
    if config.sign is None:
        return ""
    digests = {name: each.sha256 for name, each in written.files.items()} | {manifest.FILE: written.id}
    signed = signature.sign(digests, written.name, Path(config.sign))
    (folder / signature.FILE).write_bytes(signed.content)
    return signed.key


def _note(opened: Sequence[Artifact], written: Manifest, config: PackConfig) -> tuple[str, ...]:
    notes = []
    if config.sign is None:
        notes.append("Nobody has signed it: whoever can change it can change its digests too (--sign KEY).")
    if opened[0].record.origin.random_seed is not None:
        notes.append("The weights are random.")
    if all(model.original is None for model in written.models):
        notes.append("The original was not here: outputs on a box are compared with those of the packed files only.")
    return tuple(notes)


def _check_place(out: Path, opened: Sequence[Artifact], name: str, *, force: bool) -> None:
    """Refuse a place that holds something else than an older release of the same name."""
    if out.suffix != archive.SUFFIX:
        files.check_output(out, ours=OURS, sources=[artifact.folder for artifact in opened])
    else:
        files.check_file(out)
    if force or not (out / manifest.FILE if out.is_dir() else out).is_file():
        return
    try:
        with open_bundle(out) as old:
            if old.manifest.name == name:
                return
            what = f"the bundle {old.manifest.name!r}"
    except VitdeployError:
        what = "something else"
    raise UsageError("VD2008", f"holds {what}", file=out, fix="choose another name, or replace it with --force")


@contextmanager
def _stage(out: Path) -> Iterator[Path]:
    """A folder to be filled, which becomes the bundle when the block ends well."""
    if out.suffix != archive.SUFFIX:
        with files.folder(out, ours=OURS) as folder:
            yield folder
        return
    with files.temporary_folder() as scratch:
        folder = scratch / "bundle"
        folder.mkdir()
        yield folder
        contents = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        files.need_space(out, sum(path.stat().st_size for path in contents.values()))
        with files.new_file(out) as stream:
            archive.write_archive(stream, contents)
