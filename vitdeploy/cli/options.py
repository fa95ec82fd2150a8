"""Options and arguments that commands share, each with its help, so that the same word means the same everywhere.

What an option may be is not listed here: words are those of `vitdeploy.words`, engines those of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from vitdeploy.backends.table import list_compilers, list_targets
from vitdeploy.words import Alpha, Exif, Filter, InputTensor, Task, WeightsCopy

InputKind = Literal[InputTensor, "uint8"]
"""Values of ``--input``; ``uint8`` is short for ``uint8-nhwc``, what a decoder gives."""


def list_values(names: Sequence[str]) -> str:
    """What help says where a name is looked up in a table, and not among words that never change."""
    return f"<{'|'.join(names)}>"


def complete(names: Callable[[], Sequence[str]]) -> Callable[[str], list[str]]:
    """What a shell offers for an option that takes one of some names."""

    def offer(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return offer


def _complete_model(incomplete: str) -> list[str]:
    from vitdeploy.zoo.variants import VARIANTS

    return [name for name in VARIANTS if name.startswith(incomplete)]


Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A checkpoint (Hugging Face or timm folder, or a file), a name from `vitdeploy models` or timm's, a spec or mapping "
        "file (.toml), or an artifact.",
        autocompletion=_complete_model,
    ),
]
ArtifactPath = Annotated[
    Path,
    typer.Argument(metavar="ARTIFACT", help="A folder that `export`, `quantize` or `compile` wrote, its .onnx, or a bundle."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace another artifact that lies there.")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="The checkpoint of a MODEL that is a name or a spec; else random.")
]
Module = Annotated[str | None, typer.Option(help="FILE.py:FUNCTION; IMPORTS AND RUNS that code to get the network.")]
Against = Annotated[
    str | None, typer.Option(help="FILE.py:FUNCTION the model must equal; IMPORTS AND RUNS that code. For mappings.")
]
Contract = Annotated[str | None, typer.Option(help="Input contract (.toml), or what it says of it.")]
Labels = Annotated[str | None, typer.Option(help="Class names in output order: a file (text, JSON), or with commas.")]
Mean = Annotated[str | None, typer.Option(help="Mean of [0, 1] pixels: one number, or one a channel with commas.")]
Std = Annotated[str | None, typer.Option(help="Standard deviation, likewise.")]
Resize = Annotated[str | None, typer.Option(help="shortest, stretch, none, or the shorter side in pixels.")]
Crop = Annotated[float | None, typer.Option(help="Share of the resized image that the crop keeps, such as 0.875.")]
Interpolation = Annotated[Filter | None, typer.Option(help="Resampling filter.")]
ExifRule = Annotated[Exif | None, typer.Option("--exif", help="Whether photos are turned by their EXIF tag.")]
AlphaRule = Annotated[Alpha | None, typer.Option("--alpha", help="Transparency: dropped, or laid on white.")]
Output = Annotated[str | None, typer.Option(help="Main output of an .onnx made elsewhere; default: the first [N, K].")]
TaskOption = Annotated[
    Task | None, typer.Option("--task", help="What the main output is; default: what the file says, or a guess.")
]
Trust = Annotated[str | None, typer.Option(help="SHA-256 of a pickle that MAY RUN CODE; recorded.")]
Prefer = Annotated[WeightsCopy | None, typer.Option(help="Averaged or plain weights, where a checkpoint has both.")]
Target = Annotated[
    str,
    typer.Option(
        "--backend", metavar=list_values(list_targets()), help="The engine it is for.", autocompletion=complete(list_targets)
    ),
]
CompilingBackend = Annotated[
    str,
    typer.Option("--backend", metavar=list_values(list_compilers()), help="The engine.", autocompletion=complete(list_compilers)),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of whatever is drawn.")]
Data = Annotated[str | None, typer.Option("--data", help="Images: a folder, manifest, tar shards, arrays or IDX files.")]
Split = Annotated[str | None, typer.Option("--split", help="Which part of the data, where there are several.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Use at most this many images.")]
KeepOriginal = Annotated[
    bool, typer.Option("--keep-original", help="Copy the PyTorch original along; else it is found beside, where `export` wrote.")
]
MergeTokens = Annotated[
    str | None, typer.Option(help="Let N alike tokens be one, in all blocks (8) or some (6:60,8:60): faster, less exact.")
]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads of each engine; default: all cores.")]
Backends = Annotated[list[str] | None, typer.Option("--backend", help="An engine; repeat for more. Default: all installed.")]
ReportFile = Annotated[Path | None, typer.Option("--out", "-o", help="Also write the report: .json, .md as Markdown, or .html.")]
MaxDrop = Annotated[str | None, typer.Option(help="Top-1 that may be lost, as '0.5 pt'; exit 1 if it is more.")]
MinAgreement = Annotated[str | None, typer.Option(help="Images with the reference's answer, as '99 %'; exit 1 if fewer.")]
BoxName = Annotated[str, typer.Argument(metavar="USER@BOX[:PORT]", help="As for ssh; its config, agent and jump hosts count.")]
BoxPath = Annotated[str, typer.Option("--path", help="Folder on the box; from the home folder if it is not absolute.")]
BoxPython = Annotated[str, typer.Option("--python", help="Python 3.10 or later there, which has the engine.")]
BoxBackend = Annotated[str, typer.Option("--backend", help="Engine on the box; default: the first that is installed there.")]
Ssh = Annotated[str, typer.Option("--ssh", help="The program, and options for it.")]
Restart = Annotated[str, typer.Option("--restart", help="Command on the box that has the service take the new release.")]
Check = Annotated[str, typer.Option("--check", help="Command on the box that ends with 0 when the service works.")]
ReadySeconds = Annotated[float, typer.Option("--ready-s", help="Seconds for --restart, and for --check to succeed.")]
HealthSeconds = Annotated[float, typer.Option("--health-s", help="Seconds that the release may take on its samples.")]
