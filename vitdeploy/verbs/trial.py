"""Which engines `validate` and `bench` try beside the original, and why there may be no original."""

from __future__ import annotations

from collections.abc import Iterable

from vitdeploy.artifact import Artifact
from vitdeploy.backends.table import (
    PROVER,
    REFERENCE,
    TABLE,
    is_installed,
    list_engines,
    require_fit,
    require_installed,
    require_known,
)
from vitdeploy.backends.targets import explain_misfit
from vitdeploy.errors import MachineError


def explain_no_original(artifact: Artifact) -> str:
    """Why the PyTorch original of an artifact is not the reference."""
    if artifact.weights is not None:
        return "PyTorch is not installed"
    return f"it {artifact.explain_no_weights()}"


def note_misfits(engines: Iterable[str], artifact: Artifact) -> list[str]:
    """A note for each engine that an 8-bit file was not made for."""
    return [f"WARNING: {artifact.name}: {why}" for why in (explain_misfit(name, artifact) for name in engines) if why]


def choose_engines(wanted: tuple[str, ...], artifact: Artifact) -> tuple[str, ...]:
    """The backends that are measured beside the reference: those named, else the one the file was made for, else all.

    Raises:
        UsageError: VD2009, VD2013.
        MachineError: VD4001.
    """
    for name in wanted:
        require_installed(name)
    require_known(artifact)
    if artifact.record.kind in wanted:  # of those named for several artifacts, an engine has one
        wanted = (artifact.record.kind,)
    there = list_engines() if artifact.engine is None else tuple(name for name in (artifact.engine,) if is_installed(name))
    engines = tuple(dict.fromkeys(name for name in wanted or there if name != REFERENCE))
    if not engines and not wanted and artifact.engine is not None:
        message = f"was made for {artifact.engine}, which is not installed"
        fix = TABLE[artifact.engine].fix
        fix += ", or name another engine with --backend" if artifact.record.kind == "onnx" else ""
        raise MachineError("VD4001", message, file=artifact.model, fix=fix)
    if not engines and not wanted:
        raise MachineError("VD4001", "no inference engine is installed", fix=TABLE[PROVER].fix)
    for name in engines:
        require_fit(name, artifact)
    return engines
