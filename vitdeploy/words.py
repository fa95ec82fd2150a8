"""The words that settings take: each list once, read by recipes, records and the command line alike. Needs nothing.

Names of engines are not here: they are rows of `vitdeploy.backends.table`.
"""

from __future__ import annotations

from typing import Literal

QuantizedPrecision = Literal["int8", "fp8", "fp16", "bf16", "int8-dynamic", "int8-weight-only"]
"""What `quantize` makes."""
MadePrecision = Literal["fp32", QuantizedPrecision]
"""The arithmetic of what is made here."""
RecordPrecision = Literal[MadePrecision, "int4-weight-only"]
"""The arithmetic that an artifact's weights were prepared for, here or elsewhere."""
FloatPrecision = Literal["f32", "bf16", "f16"]
"""What float parts are computed in."""
Hint = Literal["latency", "throughput"]
"""Whether one batch shall be fast, or many at once."""
Goal = Literal["latency"]
"""What settings are measured for."""
InstructionSet = Literal["avx2", "avx512-vnni", "amx", "neon-dotprod"]
"""Of the CPU that a quantized file is for."""
InputTensor = Literal["float32-nchw", "uint8-nchw", "uint8-nhwc"]
"""Type and memory order of a model's input."""
Problem = Literal["single_label", "multi_label", "regression"]
"""What the numbers of a head are: one choice among classes, a decision for each label, or quantities."""
Task = Literal[Problem, "embedding"]
"""What a model's main output is: the numbers of a head, or a vector that stands for the image."""
GIVES: dict[Task, str] = {
    "single_label": "classes",
    "multi_label": "labels each on its own",
    "regression": "numbers as they are",
    "embedding": "an embedding",
}
"""What a model's main output is, in words, by its task."""
MoreOutput = Literal["tokens", "pooled"]
"""An output beside the main one."""
Filter = Literal["bilinear", "bicubic"]
"""How images are resampled."""
Exif = Literal["apply", "ignore"]
"""Whether the orientation tag of a photo counts."""
Alpha = Literal["drop", "white"]
"""What becomes of transparency: the colours behind it are shown, or the image is laid on white."""
Arrays = Literal["raw", "normalised"]
"""What arrays of floats hold: values on the scale of mean and std, or what the network sees."""
WeightsCopy = Literal["ema", "plain"]
"""Which weights of a checkpoint that has an averaged copy beside the plain ones."""
Undecided = Literal["fail", "pass", "estimate"]
"""What a limit comes to that the interval of its number can't tell; ``estimate`` is what the number itself says."""
VerdictFormat = Literal["text", "json", "md", "junit", "github"]
"""How a gate's verdict is printed."""
PORTABLE = "portable"
"""The target of `quantize` that all engines read."""
