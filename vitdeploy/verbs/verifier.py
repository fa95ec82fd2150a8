"""The verb `verify`: is this bundle what was packed, by whom, and does it do here what it did there?"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from vitdeploy import files
from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig, Runner, run_main
from vitdeploy.backends.child import open_in_child
from vitdeploy.bundle import samples, signature
from vitdeploy.bundle.bundle import EXPECTED, SAMPLES, Bundle, open_bundle
from vitdeploy.bundle.manifest import PackedModel
from vitdeploy.bundle.samples import Expected, prepare_samples, run_samples
from vitdeploy.bundle.unpacking import choose_model
from vitdeploy.data import images
from vitdeploy.errors import InputError, TrustError
from vitdeploy.progress import Progress, silent
from vitdeploy.proof.engine import distance
from vitdeploy.proof.thresholds import PREPARED
from vitdeploy.record import Metric
from vitdeploy.report import Gate, Outcome

_WARM, _TIMED = 5, 50
"""Runs before and in the measurement of a latency."""


class VerifyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to ask of a bundle.

    Attributes:
        key: File of the public key that must have signed it; None asks for no signature.
        run: Whether the model runs here on the samples and is compared with what it gave where it was packed.
        backend: The engine; None is the first that is installed and runs one of the models.
        threads: Threads of the engine; None is the number of cores.
        after: Release that this one must follow; None for any.
    """

    key: str | None = None
    run: bool = False
    backend: str | None = None
    threads: int | None = None
    after: int | None = None


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of a bundle.

    Attributes:
        schema_version: Version of this record.
        name: Of what is shipped.
        release: Its counter.
        id: SHA-256 of its manifest.
        key: Fingerprint of the key that signed it; "" where none was asked for.
        model: Folder of the model that ran; "" when none was run.
        engine: Where it ran.
        why: Why this model and this engine.
        checks: What was asked, a line each.
        notes: What a reader should know.
    """

    schema_version: int = 1
    name: str
    release: int
    id: str
    key: str = ""
    model: str = ""
    engine: str = ""
    why: str = ""
    checks: tuple[Gate, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all holds."""
        return all(check.outcome == "pass" for check in self.checks)


def verify(path: str | Path, config: VerifyConfig | None = None, *, progress: Progress = silent) -> Verification:
    """Compare a bundle with its manifest and signature, and on request with what it does on this machine.

    Args:
        path: A bundle: a ``.vdb`` file, or a folder.
        config: What to ask; None is that every file is the one that was packed.
        progress: Hears of every step.

    Returns:
        What holds. A model that runs otherwise here is no error, but a check that fails.

    Raises:
        InputError: VD3001, VD3030, it is no bundle; VD3031, the key is none.
        TrustError: VD7006, it was not signed with this key; VD7007, its files are not those that were packed; VD7008, it is no
            later release.
        UsageError: VD2009, no such backend.
        MachineError: VD4001, no engine that runs it is installed; VD4004 to VD4008, the engine failed.
    """
    config = config or VerifyConfig()
    key = None if config.key is None else signature.read_key(Path(config.key))
    with open_bundle(Path(path)) as bundle:
        progress("verify", 0, 2)
        bundle.check(key)
        _require_later(bundle, config.after)
        progress("verify", 1, 2)
        facts = bundle.manifest
        verification = Verification(
            name=facts.name,
            release=facts.release,
            id=facts.id,
            key="" if key is None else key.fingerprint,
            notes=_note(bundle, config),
        )
        if config.run:
            verification = _run(bundle, config, verification)
        progress("verify", 2, 2)
    return verification


def _run(bundle: Bundle, config: VerifyConfig, verification: Verification) -> Verification:
    """The samples through this machine's decoder and resize, and what the bundle prepared of them through its engine."""
    choice = choose_model(bundle, config.backend)
    with ExitStack() as stack:
        folder = stack.enter_context(files.temporary_folder())
        artifact = bundle.take_model(choice.model, folder / "model")
        for name in bundle.manifest.samples:
            bundle.copy(f"{SAMPLES}/{name}", folder / SAMPLES / name)
        expected = _read_expected(bundle, artifact, choice.model)
        pixels = prepare_samples([folder / SAMPLES / name for name in bundle.manifest.samples], artifact.spec.input)
        apart = float(np.abs(pixels.astype(np.float64) - expected.pixels).max())
        runner = stack.enter_context(closing(open_in_child(choice.engine, artifact, OpenConfig(threads=config.threads))))
        outputs = run_samples(
            runner, expected.pixels, artifact.spec
        )  # the bundle's own: what is off by rounding is no fault of it
        checks = [
            _check(
                "images", f"at most {PREPARED:g} of 255", apart, apart <= PREPARED, "prepared pixels beside those of the bundle"
            ),
            _check_outputs(distance(outputs, expected.outputs[choice.model.folder]), choice.model),
        ]
        if bundle.manifest.max_latency_ms is not None:
            checks.append(_check_latency(_time(runner, artifact, expected), bundle.manifest.max_latency_ms))
    return msgspec.structs.replace(
        verification, model=choice.model.folder, engine=choice.engine, why=choice.why, checks=tuple(checks)
    )


def _check_outputs(apart: float, model: PackedModel) -> Gate:
    tried = ", ".join(f"{each.distance:.2g} in {engine} {each.version}" for engine, each in model.tried.items())
    return _check("outputs", f"at most {model.limit:.2g}", apart, apart <= model.limit, f"distance; where it was packed {tried}")


def _check_latency(latency: float, most: float) -> Gate:
    check = _check("latency", f"at most {most:g} ms", latency, latency <= most, "median, one image at a time, without decoding")
    return msgspec.structs.replace(check, metric=Metric(latency, "ms"))


def _check(name: str, limit: str, value: float, holds: bool, why: str) -> Gate:
    outcome: Outcome = "pass" if holds else "fail"
    return Gate(about="", subject="", name=name, limit=limit, metric=Metric(value), outcome=outcome, why=why)


def _time(runner: Runner, artifact: Artifact, expected: Expected) -> float:
    """Median latency in ms of a prepared image alone."""
    tensor = images.to_tensor(expected.pixels[:1], artifact.spec.input)
    seconds = []
    for _ in range(_WARM + _TIMED):
        start = time.perf_counter()
        run_main(runner, tensor, artifact.spec)
        seconds.append(time.perf_counter() - start)
    return median(seconds[_WARM:]) * 1000


def _read_expected(bundle: Bundle, artifact: Artifact, model: PackedModel) -> Expected:
    """What the samples gave where the bundle was packed.

    Raises:
        InputError: VD3030, it is damaged, or of other samples or another model.
    """
    fix = "get the bundle again from whoever packed it"
    try:
        expected = samples.read_expected(bundle.read(f"{SAMPLES}/{EXPECTED}", samples.LARGEST))
    except ValueError as exc:
        raise InputError("VD3030", f"has outputs that can't be read: {exc}", file=bundle.path, fix=fix) from exc
    contract, count = artifact.spec.input, len(bundle.manifest.samples)
    output = expected.outputs.get(model.folder)
    shapes = (count, contract.height, contract.width, contract.channels), (count, artifact.spec.output_size)
    if output is None or (expected.pixels.shape, output.shape) != shapes:
        raise InputError("VD3030", "has outputs of other samples or another model", file=bundle.path, fix=fix)
    return expected


def _require_later(bundle: Bundle, after: int | None) -> None:
    release = bundle.manifest.release
    if after is not None and release <= after:
        message = f"is release {release} of {bundle.manifest.name}; it must be above {after}"
        raise TrustError("VD7008", message, file=bundle.path, fix="get a later release, or give a smaller --after")


def _note(bundle: Bundle, config: VerifyConfig) -> tuple[str, ...]:
    notes = []
    if config.key is None:
        signed = "It is signed, but no key was given: who signed it was not checked (--key KEY.pub)."
        notes.append("Nobody has signed it." if bundle.signature is None else signed)
    if not config.run:
        notes.append("Nothing of it was run (--run).")
    return tuple(notes)
