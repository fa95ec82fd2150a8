"""Was it worth it: a converted model beside its source on the engine it is for, in numbers and in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from typing import Any, NamedTuple, TypedDict

import msgspec
from numpy.typing import NDArray

from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig, run_main
from vitdeploy.backends.child import open_in_child
from vitdeploy.backends.table import REFERENCE, TABLE, is_installed
from vitdeploy.errors import UsageError
from vitdeploy.measure import latency
from vitdeploy.measure.latency import Goal, Subject
from vitdeploy.measure.parity import Parity
from vitdeploy.onnxfile.summary import count_stored_bytes
from vitdeploy.progress import Progress, silent
from vitdeploy.proof.finite import require_finite
from vitdeploy.proof.thresholds import AGREES, ALIKE, CORRELATES, COSINE, ENOUGH, FASTER, MOST_ROUNDS, NARROW, VAGUE
from vitdeploy.recipe import BenchConfig
from vitdeploy.record import Worth
from vitdeploy.report import Metric
from vitdeploy.words import Task

_CHECKS: dict[Task, str] = {
    "single_label": "check the accuracy first, on labelled images: vitdeploy validate ARTIFACT --data DIR",
    "multi_label": "check the accuracy first, by your own labels: vitdeploy predict ARTIFACT IMAGE --json",
    "regression": "check the error first, by your own numbers: vitdeploy predict ARTIFACT IMAGE --json",
    "embedding": "check your own search first: vitdeploy predict ARTIFACT IMAGE -o FILE.npy",
}
"""What to do where the outputs are not alike enough."""
_OVERFLOWS = "the source gives numbers there: add images like this one to --data, or use another --precision"
Named = tuple[NDArray[Any], Sequence[str]]
"""Images as a model takes them, [n, ...], and their names."""
_BENCH = BenchConfig(rounds=8, seconds=0.25, warmup=3)


class Comparison(NamedTuple):
    """What is compared.

    Attributes:
        source: What was converted.
        made: What came out, with the same input contract.
        engine: Name of the backend.
        config: Threads.
        held_back: Whether the images set no range.
        images: How many there are, for progress.
    """

    source: Artifact
    made: Artifact
    engine: str
    config: OpenConfig
    held_back: bool = True
    images: int = 0


def worth(comparison: Comparison, batches: Iterable[Named], *, progress: Progress = silent) -> Worth:
    """Compare and measure.

    Args:
        comparison: The two models and the engine.
        batches: Images as the contract says, with their names; none compares nothing.
        progress: Hears of every batch and turn.

    Raises:
        InputError: VD3110, one of the two gives NaN or infinity on an image.
        MachineError: The engine failed.
    """
    source, made, engine, *_ = comparison
    reference = REFERENCE if source.weights is not None and is_installed(REFERENCE) else engine
    compared = _compare(comparison, reference, batches, progress)
    sizes = {
        name: count_stored_bytes(artifact.model) / 2**20
        for name, artifact in ((source.record.precision, source), (made.record.precision, made))
    }
    whole = msgspec.structs.replace(compared, size_mib=sizes, **_time(comparison, progress))
    return msgspec.structs.replace(whole, verdict=verdict(made.record.precision, source.record.precision, whole))


def _compare(comparison: Comparison, reference_engine: str, batches: Iterable[Named], progress: Progress) -> Worth:
    source, made, engine, config, held_back, _ = comparison
    name = REFERENCE if reference_engine == REFERENCE else "source"
    spec, total = source.spec, max(1, comparison.images)
    progress("compare", 0, total)
    parity = Parity(spec.task, probabilities=spec.probabilities)
    with ExitStack() as stack:
        reference = stack.enter_context(closing(open_in_child(reference_engine, source, config)))
        runner = stack.enter_context(closing(open_in_child(engine, made, config)))
        for batch, names in batches:
            progress("compare", min(parity.images, total - 1), total)
            expected, got = (run_main(each, batch, spec) for each in (reference, runner))
            require_finite(source, spec.output, expected, names)
            require_finite(made, spec.output, got, names, fix=_OVERFLOWS)
            parity.add(expected, got)
    progress("compare", total, total)
    if not parity.images:
        return Worth(engine=engine, reference=name, images=0, held_back=held_back, task=spec.task)
    metrics = parity.metrics()
    agreement, values = metrics.get(parity.answers.name), {name: float(metric.value) for name, metric in metrics.items()}
    return Worth(
        engine=engine,
        reference=name,
        images=parity.images,
        held_back=held_back,
        task=spec.task,
        agreement=None if agreement is None else _plain(agreement),
        divergence=metrics.get("divergence"),
        cosine=values.get("cosine_mean"),
        correlation=values.get("correlation"),
        difference=values["mean_abs_difference"],
    )


class _Times(TypedDict):
    """Of a `Worth`, what was timed."""

    speedup: Metric
    other: Metric | None
    latency_ms: dict[str, float]


def _time(comparison: Comparison, progress: Progress) -> _Times:
    """Latency at batch 1 of the source, its bf16 form where the CPU has it, and the new model, in interleaved rounds."""
    source, made, engine, config, *_ = comparison
    batch = _read_batch(made, engine, config)
    names = source.record.precision, made.record.precision
    subjects = [Subject(names[0], source, engine, names[0]), Subject(names[1], made, engine, names[0])]
    if names[1] not in ("bf16", "fp16") and _has_bf16(source, engine, config):
        subjects.append(Subject("bf16", source, engine, names[0], OpenConfig(precision="bf16")))
    bench = msgspec.structs.replace(_BENCH, batches=(batch,), threads=config.threads)
    measured = latency.measure(subjects, bench, goal=Goal(NARROW, MOST_ROUNDS), progress=progress)
    metrics = {row.subject: row.metrics for row in measured.rows}
    times = {name: float(each["p50"].value) for name, each in metrics.items()}
    return {
        "speedup": _plain(metrics[names[1]]["speedup"]),
        "other": _plain(metrics["bf16"]["speedup"]) if "bf16" in metrics and names[1] != "bf16" else None,
        "latency_ms": times,
    }


def _plain(metric: Metric) -> Metric:
    """With Python's own numbers, which a record can hold."""
    low, high = (None if end is None else float(end) for end in (metric.low, metric.high))
    return Metric(float(metric.value), metric.unit, low, high)


def _read_batch(made: Artifact, engine: str, config: OpenConfig) -> int:
    with closing(open_in_child(engine, made, config)) as runner:
        return runner.batch or 1


def _has_bf16(source: Artifact, engine: str, config: OpenConfig) -> bool:
    if "bf16" not in TABLE[engine].floats:
        return False
    try:
        open_in_child(engine, source, msgspec.structs.replace(config, precision="bf16")).close()
    except UsageError:  # this CPU computes in something else
        return False
    return True


def verdict(precision: str, source: str, worth: Worth) -> str:
    """The numbers in one sentence, and what to do."""
    if worth.speedup is None:
        return f"{precision.upper()}: not measured"
    said = [f"{_describe_speed(worth.speedup)} {source.upper()}"]
    if not _is_vague(worth.speedup):
        said[0] += _interval(worth.speedup)
    if worth.other is not None:
        said.append(f"bf16 {worth.other.value:.2f}x")
    if worth.images:
        held = "" if worth.held_back else " that also set the ranges"
        said.append(f"{_describe_sameness(worth)} on {worth.images} images{held}")
    return f"{precision.upper()}: {', '.join(said)}: {_advice(precision, source, worth)}"


def _describe_speed(speedup: Metric) -> str:
    if _is_vague(speedup):
        return f"between {speedup.low:.2f}x and {speedup.high:.2f}x the speed of"
    return f"{speedup.value:.2f}x {'faster than' if speedup.value >= 1 else 'the speed of'}"


def _is_vague(speedup: Metric) -> bool:
    """Whether the interval is so wide that the number in it says nothing."""
    return speedup.low is not None and speedup.high is not None and speedup.high - speedup.low > VAGUE * speedup.value


def _describe_sameness(worth: Worth) -> str:
    """How alike the outputs are, in the words of what they are."""
    share = "" if worth.agreement is None else f"{100 * worth.agreement.value:.1f} %{_interval(worth.agreement, 100, 1)}"
    if worth.task == "regression":
        return f"correlation {_some(worth.correlation):.4f}, mean difference {_some(worth.difference):.3g}"
    if worth.task == "embedding":
        return f"cosine {_some(worth.cosine):.4f}" + (f", nearest neighbour kept {share}" if share else "")
    return f"agreement {share}" if worth.task == "single_label" else f"agreement of labels {share}"


def _some(value: float | None) -> float:
    return math.nan if value is None else value


def _interval(metric: Metric, times: float = 1, digits: int = 2) -> str:
    if metric.low is None or metric.high is None:
        return ""
    return f" [{times * metric.low:.{digits}f}, {times * metric.high:.{digits}f}]"


def _advice(precision: str, source: str, worth: Worth) -> str:
    assert worth.speedup is not None
    speed = worth.speedup.low if worth.speedup.low is not None else worth.speedup.value
    if worth.other is not None and worth.other.value >= worth.speedup.value:
        return "not worth it here: use --precision bf16, it is as fast and loses less"
    if worth.speedup.low is not None and worth.speedup.low < (FASTER if _is_vague(worth.speedup) else 1) < (
        worth.speedup.high or 0
    ):
        return "too noisy to say: when nothing else runs, measure again: vitdeploy bench ARTIFACT"
    if speed < FASTER:
        sizes = list(worth.size_mib.values())
        smaller = f", but {sizes[0] / sizes[1]:.1f}x smaller" if len(sizes) == 2 and sizes[0] > 1.2 * sizes[1] else ""
        return f"not worth it here for speed{smaller}: keep {source}"
    if not worth.images:
        return "faster; nothing was compared"
    like = {"embedding": (worth.cosine, COSINE), "regression": (worth.correlation, CORRELATES)}.get(worth.task)
    alike = like is None or _some(like[0]) >= like[1]
    share = worth.agreement or Metric(1.0, "share", 1.0 if worth.images >= ENOUGH else 0.0)
    if alike and (share.low or 0) >= AGREES:
        return "worth it"
    if alike and share.value >= ALIKE and worth.images < ENOUGH:
        return f"worth it, as far as {worth.images} images tell"
    return f"fast, but {_CHECKS[worth.task]}"
