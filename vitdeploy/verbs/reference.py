"""What `validate` and `bench` compare with: the PyTorch original, or where it can't be run, what is nearest to it.

In this order: the original; the FP32 file that an artifact was made of, found by its id; another engine. What the original gave
for the golden batch comes beside the last two. Nothing is ever compared with itself, and code of others is imported only where a
caller names it: no recipe and no record can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from vitdeploy.artifact import RECORD, Artifact, ArtifactLike, Record
from vitdeploy.backends.base import OpenConfig, Runner
from vitdeploy.backends.child import open_in_child
from vitdeploy.backends.table import REFERENCE, is_installed, list_engines
from vitdeploy.errors import InputError, UsageError, needs
from vitdeploy.files import sha256
from vitdeploy.onnxfile import check
from vitdeploy.onnxfile.precision import read_precision
from vitdeploy.onnxfile.summary import list_files
from vitdeploy.proof import golden
from vitdeploy.proof.golden import Golden
from vitdeploy.spec import InputContract, ModelSpec
from vitdeploy.verbs.importer import open_foreign
from vitdeploy.verbs.trial import choose_engines, explain_no_original

_LONGEST_LINE = 8
"""Artifacts between an engine and the export that it comes from, at most."""


class Reference(NamedTuple):
    """What engines are compared with.

    Attributes:
        name: Of its row.
        spec: What it takes and gives.
        open: Opens it.
        note: What it is, where it is not the original.
        settled: Whether nothing nearer to the original is to be looked for: it is the original, or was asked for.
        key: The same for the same function of the same images; "" where that is not known.
    """

    name: str
    spec: ModelSpec
    open: Callable[[OpenConfig], Runner]
    note: str = ""
    settled: bool = False
    key: str = ""


def find_reference(artifact: Artifact, engines: tuple[str, ...], wanted: tuple[str, ...]) -> Reference | None:
    """What an artifact is compared with where nobody says it; None where one engine is all there is.

    Args:
        artifact: What is validated.
        engines: What it is run in; the first may become the reference.
        wanted: The backends that were named.
    """
    if REFERENCE in wanted or has_original(artifact):
        key = artifact.record.origin.state_sha256
        return Reference(REFERENCE, artifact.spec, partial(open_in_child, REFERENCE, artifact), settled=True, key=key)
    why = explain_no_original(artifact)
    made_of, openers = find_float(artifact), list_engines()
    if made_of is not None and openers:
        name = f"{name_place(made_of)} / {openers[0]}"
        note = f"The reference is {name}, the FP32 file that this was made of, not the PyTorch original: {why}."
        return Reference(name, made_of.spec, partial(open_in_child, openers[0], made_of), note, key=made_of.id)
    if len(engines) < 2:
        return None
    note = f"The reference is {engines[0]}, not the PyTorch original: {why}."
    return Reference(engines[0], artifact.spec, partial(open_in_child, engines[0], artifact), note)


def take_reference(artifact: Artifact, against: ArtifactLike) -> Reference:
    """What the caller names: an artifact, an ONNX file, or ``package.file:factory``, WHICH IS IMPORTED AND RUN.

    Args:
        artifact: What is validated.
        against: What it is compared with.

    Raises:
        UsageError: VD2010, it is the artifact itself, or another model; VD2012, VD2013 as what it names.
        InputError: As `Artifact.open`, `open_foreign` and `models.modules.load_module`.
        MachineError: VD4001, what runs it is not installed; VD4004, the user's code failed.
    """
    if isinstance(against, str) and ":" in against and not Path(against).exists():
        with needs("export"):
            from vitdeploy.backends.pytorch import ModuleRunner

            runner = ModuleRunner(against, artifact.spec)
        _require_alike(artifact, against, artifact.spec.input, runner.classes)
        spec = msgspec.structs.replace(artifact.spec, input=runner.contract)
        return Reference(against, spec, runner.configure, f"The reference is the code {against}.", settled=True)
    other = open_other(artifact, against)
    if _digest_model(other) == _digest_model(artifact):
        message = "is the file that is validated: nothing is compared with itself"
        raise UsageError("VD2010", message, file=other.model, fix="name what it was made of, or leave out --against")
    _require_alike(artifact, str(against), other.spec.input, other.spec.output_size)
    engine = choose_engines((), other)[0]
    name = f"{name_place(other)} / {engine}"
    note = f"The reference is {name}, as was asked."
    if msgspec.structs.replace(other.spec.input, tensor=artifact.spec.input.tensor) != artifact.spec.input:
        note += " Its input contract is another; images are resized as this artifact's says."
    return Reference(name, other.spec, partial(open_in_child, engine, other), note, settled=True)


def read_recorded(artifact: Artifact, reference: Reference | None) -> Golden | None:
    """The golden batch with what the original gave for it, where that is nearer to the original than the reference is."""
    if reference is not None and reference.settled:
        return None
    kept = golden.read(artifact)
    if kept is not None and kept.original is None:  # made before originals were recorded: what it was made of may tell
        above = find_float(artifact)
        source = None if above is None else golden.read(above)
        if source is not None and np.array_equal(source.pixels, kept.pixels):
            kept = kept._replace(original=source.original, author=source.author)
    if kept is None or kept.original is None or (reference is not None and kept.author != REFERENCE):
        return None
    return kept


def has_original(artifact: Artifact) -> bool:
    """Whether the PyTorch original can be run here."""
    return artifact.weights is not None and is_installed(REFERENCE)


def find_float(artifact: Artifact) -> Artifact | None:
    """The FP32 file that an artifact was made of, found by its id in the place that the record names, or in the folders beside.

    Returns:
        None for an FP32 file itself, and where the file, or what lies between, is gone or changed.
    """
    here = artifact
    for _ in range(_LONGEST_LINE):
        if here.is_float:
            break
        above = next((each for each in _list_near(here) if each.id == here.record.parent), None)
        if above is None:
            return None
        here = above
    if here is artifact or not here.is_float:
        return None
    try:
        return Artifact.open(here.folder) if here.record.files else here
    except InputError:  # changed, or cut off: not what this was made of any more
        return None


def name_place(artifact: Artifact) -> str:
    """An artifact's folder, or its file where it has none, as tables name it."""
    return (artifact.folder if artifact.record.files else artifact.model).resolve().name


def _list_near(artifact: Artifact) -> Iterator[Artifact]:
    hint = artifact.record.original
    places = [] if hint is None else [artifact.folder / hint]
    if artifact.record.files:
        places += sorted(path.parent for path in artifact.folder.resolve().parent.glob(f"*/{RECORD}"))
    for place in places:
        try:
            if place.is_dir():
                yield Artifact.open(place, verify=False)
            elif place.is_file():
                record = Record(
                    entry=place.name,
                    spec=artifact.spec,
                    made_by="import",
                    precision=read_precision(check.check_file(place).model),
                )
                yield Artifact(place.parent, record)
        except InputError:  # whatever lies beside
            continue


def open_other(artifact: Artifact, against: ArtifactLike) -> Artifact:
    """What a caller names beside an artifact; an ONNX file that says nothing of its input takes that of the artifact."""
    try:
        return Artifact.take(against)
    except InputError as error:
        if error.code != "VD3012":
            raise
    assert not isinstance(against, Artifact)
    return open_foreign(Path(against), artifact.spec.input)


def _digest_model(artifact: Artifact) -> list[str]:
    """Digests of the model's file and of those beside it that hold its weights."""
    paths = list_files(artifact.model) if artifact.record.kind == "onnx" else (artifact.model,)
    return sorted(map(sha256, paths))


def _require_alike(artifact: Artifact, against: str, contract: InputContract, size: int) -> None:
    own = artifact.spec.input
    sizes = [(each.height, each.width, each.channels) for each in (contract, own)]
    if sizes[0] == sizes[1] and size == artifact.spec.output_size:
        return
    theirs, ours = (f"{height} x {width} x {channels}" for height, width, channels in sizes)
    message = f"takes {theirs} and gives {size:,} numbers, the artifact takes {ours} and gives {artifact.spec.output_size:,}"
    raise UsageError("VD2010", message, file=against, fix="name the same model in another form")
