"""Statistics of calibration images in two halves, each of which has seen every other image: observed, saved, read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from vitdeploy import files
from vitdeploy.backends.table import PROVER, TABLE
from vitdeploy.errors import InputError
from vitdeploy.kinds import sniff
from vitdeploy.machine import find_versions
from vitdeploy.progress import Progress
from vitdeploy.quant.calibrator import CalibrateConfig, Want, calibrate
from vitdeploy.quant.observations import Statistics
from vitdeploy.quant.pictures import BATCH, Part, Pictures

Halves = tuple[Statistics, Statistics]
"""Of every other image each; the same object twice where there is a single image."""
HALVES = ("first.npz", "second.npz")
"""Files of saved statistics."""
OURS = files.Ours(HALVES[0], lambda folder: HALVES if all(_is_saved(folder / name) for name in HALVES) else ())
"""How a folder is known to be one of saved statistics."""
FEW = 32
"""Images below which a warning is due."""


def observe(model: Path, wants: Sequence[Want], pictures: Pictures, states: Path | None, progress: Progress) -> Halves:
    """Observe both halves of the images that set ranges.

    Args:
        model: The rewritten graph.
        wants: What to observe.
        pictures: The images.
        states: A folder in which an interrupted observation is kept, and found again by a later call for the same; None
            keeps nothing.
        progress: Hears of every run.

    Raises:
        VitdeployError: As `calibrate`.
    """
    count = pictures.used - pictures.held
    options = CalibrateConfig(
        limit=pictures.config.limit,
        minimum=min(FEW // 2, max(1, count // 2)),
        batch=BATCH,
        threads=pictures.config.threads,
        contract=msgspec.json.encode(pictures.artifact.spec.input).decode(),
        source=pictures.name,
    )

    def observe_half(part: Part, name: str) -> Statistics:
        state = None if states is None else states / name
        config = msgspec.structs.replace(options, state=state)
        return calibrate(model, wants, pictures.part(part), config, progress=progress)

    first = observe_half("first", HALVES[0])
    return first, observe_half("second", HALVES[1]) if count > 1 else first


def _is_saved(path: Path) -> bool:
    return path.is_file() and sniff(path) == "zip"


def key_of(model: Path, wants: Sequence[Want], pictures: Pictures) -> str:
    """SHA-256, in hex, of everything that statistics depend on."""
    config = pictures.config
    everything = (
        files.sha256(model),
        wants,
        pictures.artifact.spec.input,
        pictures.digest,
        (pictures.used, pictures.held, config.limit, config.seed, config.max_bad),
        find_versions(TABLE[PROVER].package, "numpy", "pillow"),
    )
    return hashlib.sha256(msgspec.json.encode(everything)).hexdigest()


def save(halves: Halves, folder: Path) -> None:
    """Write both into a folder that `read` takes.

    Raises:
        UsageError: VD2008, it can't be written.
        MachineError: VD4002, the disk is full.
    """
    with files.folder(folder, ours=OURS) as fresh:
        for half, name in zip(halves, HALVES, strict=True):
            half.save(fresh / name)


def read(folder: Path, model: str, contract: str) -> Halves:
    """Read what `save` wrote.

    Args:
        folder: Where.
        model: SHA-256 of the graph that they must be of.
        contract: The input contract as JSON that they must be of.

    Raises:
        InputError: VD3001 to VD3005, VD3109: missing, damaged, or of something else.
    """
    first, second = (Statistics.load(folder / name) for name in HALVES)
    for half in (first, second):
        if half.model != model or half.contract != contract:
            message = "the statistics are of another model or input contract, or of other rewrites"
            raise InputError("VD3109", message, file=folder, fix="quantize with --data, and save them again")
    return (first, first) if first.digest == second.digest else (first, second)
