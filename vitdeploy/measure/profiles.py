"""Where an engine's time goes: what its own profiler says, summed by kind of operation and by block.

Engines fuse what lies side by side and name the result after one of its parts, or anew. A name tells its block where a number
follows ``block``, ``layer`` or the like, as in this package's files and in those of timm, transformers and torchvision; what lies
between two of them belongs to the later one, whose norm that is in a pre-norm ViT.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from vitdeploy.backends.base import Profile, Spent
from vitdeploy.measure.latency import Subject, choose_options
from vitdeploy.measure.worker import Worker
from vitdeploy.progress import Progress, silent
from vitdeploy.recipe import BenchConfig
from vitdeploy.report import Metric, Report, Row, identify

RUNS = 20
"""Runs that a profile is the mean of."""
BEFORE, AFTER, BETWEEN = "before the blocks", "after the blocks", "between operators"
_BLOCK = re.compile(r"(?:^|[./_])(?:blocks?|layers?|encoder_layer|stages?)[._](\d+)(?=[./_]|$)")


def profile(subjects: Sequence[Subject], config: BenchConfig, *, progress: Progress = silent) -> tuple[Report, ...]:
    """Profile all subjects at all batch sizes, one after the other, each in a process of its own.

    Args:
        subjects: Any.
        config: Batch sizes, threads.
        progress: Hears of every subject.

    Returns:
        Two reports for each subject and batch size, one by kind of operation and one by block: ``time`` in ms of a run,
        ``share`` of the whole run, ``operators`` how many.

    Raises:
        MachineError, InputError: As `latency.measure`.
    """
    reports: list[Report] = []
    batches = sorted(set(config.batches))
    for done, subject in enumerate(subjects):
        progress("profile", done, len(subjects))
        with Worker(subject.name, subject.artifact, subject.backend, choose_options(subject, config)) as worker:
            opened = worker.open()
            for batch in batches:
                worker.prepare(batch, 0)
                taken = worker.profile(RUNS)
                settings = {**opened.settings, "batch": batch, "artifact": subject.artifact.name, **identify(subject.artifact)}
                title = f"profile of {subject.name}, batch {batch}"
                for by, rows in (("operation", sum_kinds(taken)), ("block", sum_blocks(taken))):
                    reports.append(Report(title=f"{title}, by {by}", rows=rows, settings={**settings, "runs": RUNS}))
    progress("profile", len(subjects), len(subjects))
    return tuple(reports)


def sum_kinds(taken: Profile) -> tuple[Row, ...]:
    """A row for each kind of operation, the longest first; what no operator accounts for is a kind of its own."""
    rows = _sum(taken, lambda spent: (each.kind for each in spent))
    return tuple(sorted(rows, key=lambda row: -row.metrics["time"].value))


def sum_blocks(taken: Profile) -> tuple[Row, ...]:
    """A row for each block, in order of execution, and for what lies before and behind them; none where no name tells."""
    return _sum(taken, find_blocks) if any(map(_find_block, taken.spent)) else ()


def find_blocks(spent: Sequence[Spent]) -> list[str]:
    """The block of each, `BEFORE` or `AFTER` all of them: ``block 3``, or ``block 2.3`` where they lie in stages."""
    own = [_find_block(each) for each in spent]
    named = [index for index, block in enumerate(own) if block]
    blocks, following = list[str](), ""
    for index in reversed(range(len(spent))):
        following = own[index] or following
        blocks.append(BEFORE if index < named[0] else AFTER if index > named[-1] else following)
    return blocks[::-1]


def _find_block(spent: Spent) -> str:
    numbers = _BLOCK.findall(spent.name)
    return f"block {'.'.join(numbers)}" if numbers else ""


def _sum(taken: Profile, group: Callable[[Sequence[Spent]], Iterable[str]]) -> tuple[Row, ...]:
    times: dict[str, list[float]] = {}
    for key, each in zip(group(taken.spent), taken.spent, strict=True):
        times.setdefault(key, []).append(each.ms)
    accounted = sum(each.ms for each in taken.spent)
    whole = max(taken.run_ms, accounted)  # of parallel streams the parts are more than the whole
    times[BETWEEN] = [whole - accounted]
    return tuple(
        Row(
            key,
            {
                "time": Metric(sum(each), "ms"),
                "share": Metric(sum(each) / whole if whole else 0.0, "share"),
                "operators": Metric(0 if key == BETWEEN else len(each), "count"),
            },
        )
        for key, each in times.items()
    )
