"""Options and arguments that commands share, each with its help, so that the same word means the same everywhere."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class InputKind(str, Enum):
    """Values of ``--input``; ``uint8`` is short for ``uint8-nhwc``, what a decoder gives."""

    float32_nchw = "float32-nchw"
    uint8_nchw = "uint8-nchw"
    uint8_nhwc = "uint8-nhwc"
    uint8 = "uint8"

    @property
    def kind(self) -> str:
        """The value as a contract has it."""
        return "uint8-nhwc" if self is InputKind.uint8 else self.value


class Kind(str, Enum):
    """Values of ``--prefer``."""

    ema = "ema"
    plain = "plain"


class Precision(str, Enum):
    """Values of ``--precision``."""

    int8 = "int8"
    fp8 = "fp8"
    fp16 = "fp16"
    bf16 = "bf16"
    int8_dynamic = "int8-dynamic"
    int8_weight_only = "int8-weight-only"


class Target(str, Enum):
    """Values of ``--target``."""

    onnxruntime = "onnxruntime"
    openvino = "openvino"
    tensorrt = "tensorrt"
    portable = "portable"


class Isa(str, Enum):
    """Values of ``--isa``."""

    avx2 = "avx2"
    avx512_vnni = "avx512-vnni"
    amx = "amx"
    neon_dotprod = "neon-dotprod"


class Compilers(str, Enum):
    """Values of ``--backend`` where engines are made."""

    onnxruntime = "onnxruntime"
    openvino = "openvino"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


class Floats(str, Enum):
    """What float parts are computed in."""

    f32 = "f32"
    bf16 = "bf16"
    f16 = "f16"


class Hint(str, Enum):
    """Values of ``--hint``."""

    latency = "latency"
    throughput = "throughput"


class Goal(str, Enum):
    """Values of ``--optimise``."""

    latency = "latency"


def _known_models(incomplete: str) -> list[str]:
    from vitdeploy.zoo.variants import VARIANTS

    return [name for name in VARIANTS if name.startswith(incomplete)]


Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A checkpoint (Hugging Face or timm folder, or a file), a name from `vitdeploy models` or timm's, a spec or mapping "
        "file (.toml), or an artifact.",
        autocompletion=_known_models,
    ),
]
ArtifactPath = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A folder that `export` wrote, or its .onnx file.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="The checkpoint of a MODEL that is a name or a spec; else random.")
]
Module = Annotated[str | None, typer.Option(help="package.file:factory; IMPORTS AND RUNS that code to get the network.")]
Contract = Annotated[str | None, typer.Option(help="Input contract (.toml) of a --module.")]
Trust = Annotated[str | None, typer.Option(help="SHA-256 of a pickle that MAY RUN CODE; recorded.")]
Prefer = Annotated[Kind | None, typer.Option(help="Averaged or plain weights, where a checkpoint has both.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of whatever is drawn.")]
Data = Annotated[str | None, typer.Option("--data", help="Images: a folder, manifest, tar shards or IDX files.")]
Split = Annotated[str | None, typer.Option("--split", help="Which part of the data, where there are several.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Use at most this many images.")]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads of each engine; default: all cores.")]
Backends = Annotated[list[str] | None, typer.Option("--backend", help="An engine; repeat for more. Default: all installed.")]
ReportFile = Annotated[Path | None, typer.Option("--out", "-o", help="Also write the report: .json, or .md as Markdown.")]
