"""The commands that build: one a verb, each a single call of the library."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from vitdeploy.backends.table import PROVER, list_compilers, must_be_compiled
from vitdeploy.cli import answers
from vitdeploy.cli.app import app
from vitdeploy.cli.arguments import (
    choose_model,
    choose_recipe,
    open_source,
    parse_amendments,
    parse_image_size,
    read_settings,
)
from vitdeploy.cli.options import (
    Against,
    AlphaRule,
    CompilingBackend,
    Contract,
    Crop,
    Data,
    ExifRule,
    Force,
    InputKind,
    Interpolation,
    KeepOriginal,
    Labels,
    Limit,
    Mean,
    MergeTokens,
    Model,
    Module,
    Out,
    Output,
    Prefer,
    Resize,
    Seed,
    Split,
    Std,
    Target,
    TaskOption,
    Threads,
    Trust,
    Weights,
    complete,
    list_values,
)
from vitdeploy.cli.shell import BUILD, Outcome, command
from vitdeploy.progress import Progress
from vitdeploy.words import FloatPrecision, Goal, Hint, InstructionSet, MadePrecision, QuantizedPrecision


@command(
    app,
    BUILD,
    "vitdeploy export facebook_dinov2-small/ -o vit",
    "vitdeploy export vit_tiny_patch16_224.augreg_in21k_ft_in1k --weights vit.safetensors -o vit",
    "vitdeploy export vit_small_patch16_224 --input uint8 --image-size 224x320 -o vit-bytes",
    "vitdeploy export mapping.toml --weights vit.pth --against my_project.vit:build -o vit",
)
def export(
    *,
    model: Model = None,
    out: Out,
    weights: Weights = None,
    module: Module = None,
    against: Against = None,
    contract: Contract = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    crop: Crop = None,
    interpolation: Interpolation = None,
    exif: ExifRule = None,
    alpha: AlphaRule = None,
    labels: Labels = None,
    data: Annotated[str | None, typer.Option(help="Labelled images: compare the input contract with other usual ones.")] = None,
    split: Split = None,
    limit: Annotated[int | None, typer.Option(help="Use at most this many of them; default 256.")] = None,
    trust_pickle: Trust = None,
    prefer: Prefer = None,
    task: TaskOption = None,
    opset: Annotated[int | None, typer.Option(help="ONNX operator set, 18 to 22; default 20.")] = None,
    batch: Annotated[int | None, typer.Option(help="The one batch size the file takes; default: any.")] = None,
    image_size: Annotated[str | None, typer.Option(help="N or HxW, in pixels; default: the model's own.")] = None,
    input: Annotated[InputKind, typer.Option(help="What the file takes.")] = "float32-nchw",
    top_k: Annotated[int | None, typer.Option(help="Also put out the K most probable classes.")] = None,
    outputs: Annotated[str | None, typer.Option(help="Also put out `tokens`, `pooled`, or both with a comma.")] = None,
    merge_tokens: MergeTokens = None,
    golden: Annotated[int | None, typer.Option(help="Images whose outputs in PyTorch travel along; default 4.")] = None,
    seed: Seed = 0,
    force: Force = False,
    progress: Progress,
) -> Outcome:
    """Export a ViT to ONNX, and prove that the file computes the same."""
    import vitdeploy as vd
    from vitdeploy.render import tables

    more: dict[str, Any] = {
        "input": "uint8-nhwc" if input == "uint8" else input,
        "image_size": parse_image_size(image_size),
        "outputs": outputs and outputs.split(","),
        "data": data,
        "split": split,
        "limit": limit,
        "merge_tokens": merge_tokens,
    }
    said = parse_amendments(mean, std, resize, labels, crop=crop, interpolation=interpolation, exif=exif, alpha=alpha)
    config = read_settings(vd.ExportConfig, opset=opset, batch=batch, top_k=top_k, golden=golden, **more)
    given = {"weights": weights, "seed": seed, "contract": contract, "trust_pickle": trust_pickle, "prefer": prefer, "task": task}
    source = choose_model(model, module, **given, **said)
    artifact = vd.export(source, config, out, against=against, force=force, progress=progress)
    return answers.answer_artifact(artifact, [tables.tabulate_export(artifact)], "validate {}")


@command(
    app,
    BUILD,
    "vitdeploy quantize vit --data photos/ -o vit-int8",
    "vitdeploy quantize vit --backend openvino --data photos/ -o vit-int8-ov",
    "vitdeploy quantize vit --precision fp16 --data photos/ -o vit-fp16",
    "vitdeploy quantize timm.onnx --contract input.toml --data photos/ -o vit-int8",
)
def quantize(
    *,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A folder that `export` wrote, or any ViT's .onnx file.")],
    out: Out,
    precision: Annotated[QuantizedPrecision, typer.Option(help="What to.")] = "int8",
    backend: Target = PROVER,
    data: Annotated[str | None, typer.Option(help="Images like those of deployment, 128 or so; or `random`.")] = None,
    contract: Annotated[Path | None, typer.Option(help="Input contract (.toml) of an .onnx made elsewhere.")] = None,
    output: Output = None,
    task: TaskOption = None,
    split: Split = None,
    limit: Annotated[int | None, typer.Option(help="Images that set ranges, at most; default 256.")] = None,
    keep_fp32: Annotated[str | None, typer.Option(help="With fp16: parts or nodes to keep: layernorm,softmax,head.")] = None,
    isa: Annotated[InstructionSet | None, typer.Option(help="The target's instruction set; default: x86 with VNNI.")] = None,
    attention: Annotated[bool, typer.Option("--attention", help="OpenVINO, TensorRT: inside attention too.")] = False,
    statistics: Annotated[str | None, typer.Option(help="Folder of saved statistics, in place of images.")] = None,
    save_statistics: Annotated[str | None, typer.Option(help="Folder to save the statistics in.")] = None,
    merge_tokens: MergeTokens = None,
    skip: Annotated[str | None, typer.Option(help="Exact rewrites to leave out, with commas.")] = None,
    verify: Annotated[bool, typer.Option(help="Compare and measure on the target's engine.")] = True,
    max_bad: Annotated[int, typer.Option(help="Unreadable images to tolerate.")] = 0,
    keep_original: KeepOriginal = False,
    seed: Seed = 0,
    threads: Threads = None,
    force: Force = False,
    progress: Progress,
) -> Outcome:
    """Quantize to INT8 or FP16, and show that it runs as planned and was worth it."""
    import vitdeploy as vd
    from vitdeploy.render import tables

    given: dict[str, object] = {"precision": precision, "target": backend, "isa": isa}
    given |= {"calibration": data, "split": split, "limit": limit, "max_bad": max_bad, "seed": seed}
    given |= {"statistics": statistics, "save_statistics": save_statistics, "attention": attention, "verify": verify}
    given |= {"merge_tokens": merge_tokens}
    given |= {"keep_fp32": keep_fp32 and keep_fp32.split(","), "skip": skip and skip.split(",")}
    config = read_settings(vd.QuantizeConfig, **given, keep_original=keep_original, threads=threads)
    artifact = vd.quantize(open_source(source, contract, output, task), config, out, force=force, progress=progress)
    following = f"compile {{}} --backend {artifact.engine} -o OUT" if must_be_compiled(artifact) else "validate {} --data DIR"
    return answers.answer_artifact(artifact, tables.tabulate_quantized(artifact), following)


@command(
    app,
    BUILD,
    "vitdeploy compile vit --backend openvino -o vit-ov --optimise latency",
    "vitdeploy compile vit-int8 --backend tensorrt --rival vit-fp16 -o vit-trt",
    "vitdeploy compile timm.onnx --contract input.toml --backend onnxruntime -o vit-ort",
)
def compile(
    *,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="An artifact, a bundle, or any ViT's .onnx file.")],
    backend: CompilingBackend,
    out: Out,
    contract: Annotated[Path | None, typer.Option(help="Input contract (.toml) of an .onnx made elsewhere.")] = None,
    output: Output = None,
    task: TaskOption = None,
    rival: Annotated[Path | None, typer.Option(help="The same model in another precision; the faster is kept.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, gpu, npu, auto or cuda; default: the engine's usual one.")] = None,
    precision: Annotated[
        FloatPrecision | None, typer.Option(help="What float parts are computed in; default: the file's.")
    ] = None,
    hint: Annotated[Hint, typer.Option(help="One batch fast, or many at once.")] = "latency",
    optimise: Annotated[Goal | None, typer.Option(help="Measure the settings that matter here; keep the fastest.")] = None,
    batch: Annotated[int | None, typer.Option(help="The one batch size that the engine takes; default: as the file.")] = None,
    usual_batch: Annotated[int | None, typer.Option(help="TensorRT: the batch to choose kernels for; default 1.")] = None,
    largest_batch: Annotated[int | None, typer.Option(help="TensorRT: the largest batch; default 8.")] = None,
    streams: Annotated[int | None, typer.Option(help="OpenVINO: runs at a time.")] = None,
    workspace: Annotated[int | None, typer.Option(help="TensorRT: MiB of scratch memory; default: by what is free.")] = None,
    effort: Annotated[int | None, typer.Option(help="TensorRT: 0 (quick build) to 5; default 3.")] = None,
    architecture: Annotated[list[str] | None, typer.Option(help="TensorRT-RTX: compute capability, as 8.9; repeat.")] = None,
    weakly_typed: Annotated[bool, typer.Option("--weakly-typed", help="TensorRT 10: the builder chooses precisions.")] = False,
    compatible: Annotated[bool, typer.Option("--compatible", help="TensorRT: later versions can read it; slower.")] = False,
    refit: Annotated[bool, typer.Option("--refit", help="TensorRT: its weights can be replaced.")] = False,
    keep_original: KeepOriginal = False,
    seconds: Annotated[float | None, typer.Option(help="Longest time of one build; default 3600.")] = None,
    print_trtexec: Annotated[bool, typer.Option("--print-trtexec", help="TensorRT: print trtexec's command; no build.")] = False,
    threads: Threads = None,
    force: Force = False,
    progress: Progress,
) -> Outcome:
    """Compile an engine, and check that it is what was asked for."""
    import vitdeploy as vd
    from vitdeploy.bundle.bundle import is_bundle
    from vitdeploy.bundle.unpacking import open_model
    from vitdeploy.render import tables

    given: dict[str, object] = {"backend": backend, "device": device, "precision": precision}
    given |= {"hint": hint, "optimise": optimise, "batch": batch, "usual_batch": usual_batch}
    given |= {"largest_batch": largest_batch, "streams": streams, "workspace_mib": workspace, "effort": effort}
    given |= {"architectures": architecture, "weakly_typed": weakly_typed, "compatible": compatible, "refit": refit}
    config = read_settings(vd.CompileConfig, **given, keep_original=keep_original, seconds=seconds, threads=threads)
    foreign = (contract, output, task)
    with open_model(source, backend, compiles=True) if is_bundle(source) else nullcontext(open_source(source, *foreign)) as model:
        if print_trtexec:
            return answers.answer_command(model, config, out)
        other = None if rival is None else open_source(rival, *(() if rival.is_dir() else foreign))
        artifact = vd.compile(model, config, out, rival=other, force=force, progress=progress)
    following = "validate {}" if artifact.record.audited else "inspect {}"
    return answers.answer_artifact(artifact, tables.tabulate_compiled(artifact), following)


@command(
    app,
    BUILD,
    "vitdeploy build facebook_dinov2-small/ --data photos/",
    "vitdeploy build vit_tiny_patch16_224 --weights vit.safetensors --data photos/ --precision fp16 --backend openvino",
    "vitdeploy build recipes/fashion_mnist.toml -o runs/demo",
)
def build(
    *,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help="A recipe (.toml), or a model as for `export`.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write; default: runs/NAME.")] = None,
    weights: Weights = None,
    data: Data = None,
    split: Split = None,
    limit: Limit = None,
    precision: Annotated[
        MadePrecision | None, typer.Option(help="What to quantize to; default: int8 where --data is given, else fp32.")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar=list_values(list_compilers()),
            help="Repeat for more. Default: all engines that are installed and run here.",
            autocompletion=complete(list_compilers),
        ),
    ] = None,
    module: Annotated[
        str | None, typer.Option(help="Code that the recipe names and MAY IMPORT AND RUN: FILE.py:FUNCTION.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Do finished stages again.")] = False,
    progress: Progress,
) -> Outcome:
    """Export, quantize, compile, validate, bench and report in one go; skips what is done."""
    import vitdeploy as vd
    from vitdeploy.render import console, tables

    out = out or Path("runs") / (Path(recipe).stem or "build")
    given = {"weights": weights, "data": data, "split": split, "limit": limit, "precision": precision, "backend": backend}
    report = vd.build(choose_recipe(recipe, given, module), out, force=force, progress=progress)
    best = out / str(report.settings.get("best", "export"))
    hint = f"report: {out / 'report.md'}; next: vitdeploy predict {answers.quote(best)} IMAGE"
    return Outcome(
        report,
        lambda: console.print_report(report),
        hint,
        exit=0 if report.passed else answers.GATE_FAILED,
        show_more=lambda: console.print_tables(tables.tabulate_surroundings(report)),
    )
