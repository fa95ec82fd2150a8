"""The verb `quantize`: an exported ViT becomes INT8 or FP16, and is shown to run as planned before it is accepted.

Four things go wrong in silence elsewhere and are checked here each time: the rewritten float graph is not the same function,
the engine runs in float what the file says is INT8, accuracy is lost on other images than those that set the ranges, and
the result is no faster than what it replaces.

The work is that of `job`, in a child process: engines run graphs there that nobody has run before. Here nothing is imported
that only the child needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import msgspec

from vitdeploy import files, isolate
from vitdeploy.artifact import OURS, Artifact, ArtifactLike, Record, check_place
from vitdeploy.backends.table import PROVER, TABLE, Engine, register
from vitdeploy.backends.targets import settle_target
from vitdeploy.errors import MachineError, UsageError
from vitdeploy.progress import Progress, silent
from vitdeploy.recipe import GIVEN, QuantizeConfig
from vitdeploy.schedule import read_schedule

_PACKAGES = ("onnx", "onnx_ir", TABLE[PROVER].package)
_PATIENCE_S = 24 * 3600.0
_FILE_MIB = 64 << 10


def quantize(  # noqa: PLR0913 (three of them are keywords that most callers leave out)
    artifact: ArtifactLike,
    config: QuantizeConfig,
    out: files.PathName,
    *,
    calibration: Iterable[object] | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Artifact:
    """Quantize an exported model. An interrupted calibration is kept: the same call goes on where it stopped.

    Args:
        artifact: What `export` wrote, or a path of it; or a ViT's ONNX file with its input contract.
        config: Precision, target, calibration images.
        out: Folder to write. What the same verb made there from the same source is replaced in one step.
        calibration: Images of a program in place of files, for a config whose ``calibration`` is ``given``: arrays [H, W, C] or
            [C, H, W], or pairs of one and anything; what their numbers are, `data.arrays` says. No more are taken than the config
            asks for.
        force: Replace any artifact that lies there; never a source, and nothing that vitdeploy did not write.
        progress: Hears of each step.

    Returns:
        The artifact; its record's ``proof`` has the rewrites, the choice made for every tensor, the census and the verdict.

    Raises:
        UsageError: VD2008 unusable ``out``; VD2003, VD2010, VD2011 impossible options.
        InputError: VD3023 no ViT in the graph; VD3024 quantized already; VD3025 a graph that can't be edited; VD3101 to VD3107
            the images; VD3109 statistics of another model; VD3110 NaN in an activation.
        MachineError: VD4003 the rewritten graph is another function; VD4009 the engine does not run what was planned;
            VD4004, VD4006 the engine failed; VD4007, VD4008 it crashed or hung; VD4001 a package is not installed.
    """
    artifact, out, config = Artifact.take(artifact), Path(out), settle_target(config)
    _require_packages()
    if config.merge_tokens is not None:
        read_schedule(config.merge_tokens)
    check_place(out, sources=[artifact.folder], replaces=partial(_is_next, artifact), force=force)
    with ExitStack() as stack:
        folder = stack.enter_context(files.folder(out, ours=OURS))  # here, so that nothing is left of a child that is killed
        order = QuantizeOrder(
            source=str(artifact.folder),
            record=artifact.record,
            config=config,
            folder=str(folder),
            current=str(Path.cwd()),
            given=_save_given(calibration, config, str(stack.enter_context(files.temporary_folder()))),
            cache=str(files.cache_folder() / "quantize"),
            engines=tuple(TABLE.values()),
        )
        limits: isolate.Limits = {
            "file_mib": _FILE_MIB,
            "what": "the process that quantizes",
            "file": str(artifact.model),
            "smaller": "close other programs, or use a machine with more memory",
            "longer": "use fewer images (--limit)",
        }
        isolate.run(f"{__name__}:quantize_as_told", msgspec.to_builtins(order), seconds=_PATIENCE_S, progress=progress, **limits)
    return Artifact.open(out, verify=False)


def _save_given(calibration: Iterable[object] | None, config: QuantizeConfig, folder: str) -> str | None:
    """Where the caller's images were written for the child, if any were given."""
    if (calibration is None) != (config.calibration != GIVEN):
        message = f"the config's calibration is {config.calibration!r}, and images were {'not ' * (calibration is None)}given"
        raise UsageError("VD2010", message, fix="give images to quantize(..., calibration=images) with calibration='given'")
    if calibration is None:
        return None
    from vitdeploy.data.stacks import save

    return str(save(islice(calibration, config.limit + config.verify_images), Path(folder)))


def _is_next(artifact: Artifact, old: Record) -> bool:
    return old.made_by == "quantize" and old.parent == artifact.id


class QuantizeOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What the child that quantizes is told.

    Attributes:
        source: Folder of the artifact.
        record: Of the artifact.
        config: How to quantize.
        folder: An empty folder for what comes out.
        current: Folder that relative paths are of.
        given: Images that the caller's program gave, or None.
        cache: Folder for the statistics of interrupted runs.
        engines: The table of engines: the caller may have registered some.
    """

    source: str
    record: Record
    config: QuantizeConfig
    folder: str
    current: str
    given: str | None
    cache: str
    engines: tuple[Engine, ...]


def quantize_as_told(argument: object) -> None:
    """The child's side of `quantize`, as a `QuantizeOrder` says. Called by `isolate.run`."""
    from vitdeploy.quant.job import write

    order = msgspec.convert(argument, QuantizeOrder)
    register(order.engines)
    os.chdir(order.current)  # paths in messages and in the record stay as they were written
    artifact, folder = Artifact(Path(order.source), order.record), Path(order.folder)
    given = None if order.given is None else Path(order.given)
    write(artifact, order.config, folder, given=given, cache=Path(order.cache), progress=isolate.report_progress)


def _require_packages() -> None:
    for name in _PACKAGES:
        if find_spec(name) is None:
            fix = "run: pip install 'vitdeploy[quantize]'"
            raise MachineError("VD4001", f"needs the package {name!r}, which is not installed", fix=fix)
