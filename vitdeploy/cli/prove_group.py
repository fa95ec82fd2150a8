"""The commands that prove: one a verb, each a single call of the library."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import answers
from vitdeploy.cli.app import app
from vitdeploy.cli.arguments import choose_thresholds, parse_numbers, read_settings
from vitdeploy.cli.options import (
    ArtifactPath,
    Backends,
    Data,
    Limit,
    MaxDrop,
    MinAgreement,
    ReportFile,
    Seed,
    Split,
    Threads,
)
from vitdeploy.cli.shell import PROVE, Outcome, command
from vitdeploy.progress import Progress
from vitdeploy.words import VerdictFormat


@command(
    app,
    PROVE,
    "vitdeploy validate vit --data photos/ --limit 1000",
    "vitdeploy validate vit-int8 --data photos/ --max-drop '0.5 pt'   exit 1 if it lost more",
    "vitdeploy validate vit-int8 --data photos/ --layers   which layer breaks, and why",
    "vitdeploy validate vit-int8 --against my_project.vit:build   imports and runs that code",
    "vitdeploy validate vit --json",
)
def validate(
    *,
    artifact: ArtifactPath,
    data: Data = None,
    split: Split = None,
    limit: Limit = None,
    seed: Seed = 0,
    batch: Annotated[int | None, typer.Option(help="Images a run; default 32.")] = None,
    max_bad: Annotated[int, typer.Option(help="Unreadable images to tolerate.")] = 0,
    allow_shifted_labels: Annotated[
        bool, typer.Option("--allow-shifted-labels", help="Measure though all labels are off by one.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(help="Compare with this artifact, .onnx, or package.file:factory, WHOSE CODE IS IMPORTED AND RUN."),
    ] = None,
    max_drop: MaxDrop = None,
    min_agreement: MinAgreement = None,
    layers: Annotated[bool, typer.Option("--layers", help="Compare every layer too, and name the first that breaks.")] = False,
    backend: Backends = None,
    threads: Threads = None,
    out: ReportFile = None,
    progress: Progress,
) -> Outcome:
    """Compare engines with the PyTorch original: parity, and accuracy on labels."""
    import vitdeploy as vd
    from vitdeploy.bundle.unpacking import open_model

    answers.check_report_file(out)
    given = {"data": data, "split": split, "limit": limit, "seed": seed, "batch": batch, "max_bad": max_bad}
    given |= {"allow_shifted_labels": allow_shifted_labels, "max_drop": max_drop, "min_agreement": min_agreement}
    given |= {"layers": layers}
    config = read_settings(vd.ValidateConfig, **given, backends=backend, threads=threads)
    with open_model(artifact, backend[0] if backend else None) as model:
        report = vd.validate(model, config, against=against, progress=progress)
    return answers.answer_report(report, out, f"vitdeploy bench {answers.quote(artifact)}")


@command(
    app,
    PROVE,
    "vitdeploy bench vit --batch 1,8",
    "vitdeploy bench vit-a vit-b --backend onnxruntime -o bench.md",
    "vitdeploy bench vit-int8 --profile   where the time goes",
)
def bench(
    *,
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Folders that `export` wrote.")],
    batch: Annotated[list[str] | None, typer.Option(help="Batch sizes: repeat, or a comma list; default 1.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Interleaved rounds; default 10.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Shortest time a subject runs in a round; default 0.3.")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Tell where the time goes, too: by operation and by block.")] = False,
    threads: Annotated[
        list[str] | None, typer.Option(help="Threads of each engine: repeat, or a comma list; default: all cores.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Images: what decoding one of them takes has a row of its own.")] = None,
    split: Split = None,
    backend: Backends = None,
    out: ReportFile = None,
    progress: Progress,
) -> Outcome:
    """Measure latency against the PyTorch original, with intervals."""
    import vitdeploy as vd
    from vitdeploy.bundle.unpacking import open_model
    from vitdeploy.data import open_dataset

    answers.check_report_file(out)
    given = {"batches": parse_numbers(batch, "batch"), "rounds": rounds, "seconds": seconds, "profile": profile}
    config = read_settings(vd.BenchConfig, **given, threads=parse_numbers(threads, "threads"), backends=backend)
    images = None if data is None else open_dataset(Path(data), split=split)
    with ExitStack() as stack:
        models = [stack.enter_context(open_model(path, backend[0] if backend else None)) for path in artifacts]
        report = vd.bench(models, config, data=images, progress=progress)
    return answers.answer_report(report, out, f"vitdeploy predict {answers.quote(artifacts[0])} IMAGE")


@command(
    app,
    PROVE,
    "vitdeploy gate vit-int8 --data photos/ --max-drop '0.5 pt'",
    "vitdeploy gate validate.json bench.json --config gate.toml -o gate.xml",
    "vitdeploy gate vit-int8 --data photos/ --baseline gate.json --update-baseline   writes gate.json",
    "vitdeploy gate vit-int8 --data photos/ --baseline gate.json   compares with it, image by image",
    "vitdeploy gate run.json --output-format github",
)
def gate(
    *,
    subjects: Annotated[
        list[Path],
        typer.Argument(metavar="REPORT|ARTIFACT...", help="Reports (.json), or artifacts or bundles, which are measured here."),
    ],
    config: Annotated[Path | None, typer.Option(help="Thresholds (.toml); default: max_drop 0.5 pt, min_agreement 98 %.")] = None,
    max_drop: MaxDrop = None,
    min_agreement: MinAgreement = None,
    min_speedup: Annotated[str | None, typer.Option(help="Reference's latency over the candidate's, as 2.0.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="An earlier model's answers (.json), to compare image by image.")] = None,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Write that file anew, unless a limit is missed.")
    ] = False,
    about: Annotated[Path | None, typer.Option(help="The artifact that the reports must be of.")] = None,
    data: Data = None,
    split: Split = None,
    limit: Limit = None,
    seed: Seed = 0,
    rounds: Annotated[int | None, typer.Option(help="Interleaved rounds of a measurement of latency.")] = None,
    backend: Backends = None,
    threads: Threads = None,
    output_format: Annotated[VerdictFormat, typer.Option(help="What is printed.")] = "text",
    out: Annotated[
        list[Path] | None, typer.Option("--out", "-o", help="Also write: .json, .md, or .xml as JUnit; repeat for more.")
    ] = None,
    progress: Progress,
) -> Outcome:
    """Judge a model by limits and the intervals of its numbers: exit 0 pass, 1 fail or inconclusive."""
    import vitdeploy as vd

    answers.check_verdict_files(out or ())
    answers.check_baseline_file(baseline)
    limits = {"max_drop": max_drop, "min_agreement": min_agreement, "min_speedup": min_speedup}
    settings = vd.GateConfig(
        thresholds=choose_thresholds(config, limits),
        validate=read_settings(
            vd.ValidateConfig, data=data, split=split, limit=limit, seed=seed, backends=backend, threads=threads
        ),
        bench=read_settings(vd.BenchConfig, rounds=rounds, backends=backend, threads=threads),
        baseline=baseline,
        update_baseline=update_baseline,
        about=about,
    )
    return answers.answer_verdict(vd.gate(subjects, settings, progress=progress), out or (), output_format)


@command(
    app,
    PROVE,
    "vitdeploy report validate.json bench.json -o report.html",
    "vitdeploy report vit-int8 run.json --data photos/ -o report.html   shows the worst images",
)
def report(
    *,
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Reports or verdicts (.json), models, folders of `build`.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page (.html).")],
    data: Data = None,
    split: Split = None,
) -> Outcome:
    """Make one page for people of what was measured; it needs no network and no script."""
    from vitdeploy.verbs.reporter import write_page

    answers.check_page_file(out)
    page = write_page(runs, out, data=None if data is None else Path(data), split=split)
    return answers.answer_page(page)
