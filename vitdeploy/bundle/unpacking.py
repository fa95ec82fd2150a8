"""What of a bundle runs on this machine, and a bundle as an artifact wherever one is taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vitdeploy import files
from vitdeploy.artifact import Artifact, ArtifactLike
from vitdeploy.backends.table import TABLE, find_engine, is_installed, list_engines
from vitdeploy.bundle.bundle import Bundle, is_bundle, open_bundle
from vitdeploy.bundle.manifest import PackedModel
from vitdeploy.errors import MachineError, UsageError


class Choice(NamedTuple):
    """What of a bundle runs here.

    Attributes:
        model: The model.
        engine: The engine.
        why: In a sentence.
    """

    model: PackedModel
    engine: str
    why: str


def choose_model(bundle: Bundle, backend: str | None = None, *, compiles: bool = False) -> Choice:
    """The first model of a bundle that an engine which is installed here runs.

    Args:
        bundle: Its models are in the order in which they should be taken.
        backend: The engine; None for any.
        compiles: Whether the engine shall compile the model, and not open it as it is.

    Raises:
        UsageError: VD2009, no such backend; VD2013, none of the models is for it.
        MachineError: VD4001, none of the engines is installed.
    """
    wanted = list_engines() if backend is None else (find_engine(backend).name,)
    for model in bundle.manifest.models:
        for engine in wanted:
            row = TABLE[engine]
            opens = row.compiles if compiles else not row.compiled_only
            if model.engine in (None, row.quantize_target) and opens and is_installed(engine):
                others = [each.folder for each in bundle.manifest.models if each is not model]
                first = "the first of its models" if others else "its model"
                asked = "as asked" if backend else "the first engine that is installed"
                return Choice(model, engine, f"{model.folder} is {first} that runs here; {engine} is {asked}")
    names = ", ".join(bundle.manifest.needs.engines)
    if backend is not None and TABLE[backend].compiled_only and not compiles:
        fix = f"run: vitdeploy compile BUNDLE --backend {backend} -o OUT"
        raise UsageError("VD2013", f"has to be compiled before {backend} can run it", file=bundle.path, fix=fix)
    if backend is not None and is_installed(backend):
        made_for = ", ".join(sorted({model.engine or "any" for model in bundle.manifest.models}))
        fix = f"use --backend {bundle.manifest.needs.engines[0]}"
        raise UsageError("VD2013", f"holds models for {made_for}, none for {backend}", file=bundle.path, fix=fix)
    fix = TABLE[backend or bundle.manifest.needs.engines[0]].fix
    raise MachineError("VD4001", f"needs one of these engines: {names}", file=bundle.path, fix=fix)


@contextmanager
def open_model(given: ArtifactLike, backend: str | None = None, *, compiles: bool = False) -> Iterator[Artifact]:
    """An artifact, what a path of one names, or the model of a bundle that runs here, which goes away when the block ends.

    Args:
        given: An artifact, or the path of one, of an ONNX file or of a bundle.
        backend: The engine that a bundle's model must be for; None for any that is installed.
        compiles: As `choose_model`.

    Raises:
        VitdeployError: As `Artifact.open`; of a bundle as `open_bundle`, `choose_model` and `Bundle.take_model`.
    """
    if isinstance(given, Artifact) or not is_bundle(Path(given)):
        yield Artifact.take(given)
        return
    with open_bundle(Path(given)) as bundle, files.temporary_folder() as folder:
        yield bundle.take_model(choose_model(bundle, backend, compiles=compiles).model, folder / "model")
