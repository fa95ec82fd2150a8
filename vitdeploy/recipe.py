"""One TOML file, one typed section a verb, complete in itself: no inheritance, no templates, no program.

Every verb's settings live here as a frozen struct, so a recipe, a command line and a Python call mean the same thing.
Unknown keys are errors with the nearest name and the line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from vitdeploy.amendments import Amendments
from vitdeploy.errors import UsageError
from vitdeploy.tomlfile import read_toml, require_positive
from vitdeploy.words import (
    FloatPrecision,
    Goal,
    Hint,
    InputTensor,
    InstructionSet,
    MoreOutput,
    QuantizedPrecision,
    Task,
    WeightsCopy,
)

FILES = frozenset((".toml", ".json", ".onnx", ".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz"))
"""Endings by which a model's source is a file, not a name."""
OPSETS = (18, 19, 20, 21, 22)


class ModelConfig(Amendments, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model, and what the user says of its input and its classes: the fields of `Amendments`.

    Attributes:
        source: A checkpoint that says what it is (a Hugging Face or timm folder, a file), an artifact, an architecture's
            name (`vitdeploy models`, or timm's), a spec file (.toml or .json), or a mapping file (.toml). With `module`, the
            ``FILE.py:function`` or ``package.file:function`` that makes the network.
        weights: The checkpoint's file or folder, for a source that is not one itself; None takes the artifact's own, or
            random weights from `seed`.
        seed: Seed of random weights.
        module: Import `source` and run its code to get the network; a recipe's only where the caller names it, too.
        contract: File (.toml or .json) with the input contract, or with those fields of it that the checkpoint does not say
            or says wrongly. A module says none of them.
        trust_pickle: SHA-256 of a pickled checkpoint that may run code.
        prefer: Which weights to take from a checkpoint that has an averaged copy beside the plain ones; None takes the
            average when it is complete, and says so.
        task: What the main output is, where the checkpoint does not say it or says it wrongly; None is what it says.
    """

    source: str
    weights: str | None = None
    seed: int = 0
    module: bool = False
    contract: str | None = None
    trust_pickle: str | None = None
    prefer: WeightsCopy | None = None
    task: Task | None = None

    def __post_init__(self) -> None:
        """Refuse a seed that generators can't take."""
        _seed(self.seed)


GOLDEN_IMAGES = 4
"""Images of a golden batch where nobody says how many."""


class ExportConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="verb", tag="export"):
    """How to export.

    Attributes:
        opset: ONNX operator set, 18 to 22.
        batch: None for a dynamic batch, or the one size the file shall take.
        image_size: Height and width in pixels, or None for the model's own; learned positions are resampled.
        input: What the file takes: normalised float32, or raw uint8 with the normalisation inside.
        top_k: Add outputs ``top_k_probabilities`` and ``top_k_indices`` [N, K].
        outputs: Outputs beside the main one: ``tokens`` [N, T, D], ``pooled`` [N, D].
        data: Labelled images (folder, manifest, tar shards or IDX) on which the input contract is compared with others that are
            plausible; None compares nothing.
        split: Which part of them.
        limit: Use at most this many of them.
        golden: Images of the golden batch, whose outputs in PyTorch travel with everything that is made of the export.
        merge_tokens: Which blocks merge how many tokens, as `schedule` reads it; None merges none.
        prove_batches: Batch sizes at which the file is run and compared before it is accepted.
        tolerance: Largest |difference| from PyTorch, as a share of the standard deviation of PyTorch's output.
    """

    opset: int = 20
    batch: int | None = None
    image_size: tuple[int, int] | None = None
    input: InputTensor = "float32-nchw"
    top_k: int | None = None
    outputs: tuple[MoreOutput, ...] = ()
    data: str | None = None
    split: str | None = None
    limit: int = 256
    golden: int = GOLDEN_IMAGES
    merge_tokens: str | None = None
    prove_batches: tuple[int, ...] = (1, 2, 3, 7, 8)
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        """Refuse what can't be exported."""
        if self.opset not in OPSETS:
            raise UsageError("VD2011", f"opset {self.opset} is not supported", fix=f"use {OPSETS[0]} to {OPSETS[-1]}")
        if self.batch is not None and self.batch < 1:
            raise UsageError("VD2011", f"batch is {self.batch}", fix="use 1 or more, or leave it out for a dynamic batch")
        require_positive(self, "limit", "golden")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError("VD2011", f"top-k is {self.top_k}", fix="use 1 or more")
        if len(set(self.outputs)) < len(self.outputs):
            raise UsageError("VD2011", f"outputs names one twice: {', '.join(self.outputs)}", fix="name each once")
        if not self.prove_batches or min(self.prove_batches) < 1:
            raise UsageError("VD2011", f"prove_batches is {self.prove_batches}", fix="give at least one batch size >= 1")
        if not 0 < self.tolerance < 1:
            raise UsageError("VD2003", f"tolerance is {self.tolerance}", fix="use a share between 0 and 1, such as 1e-4")


CALIBRATION_IMAGES = 256
"""Images that set ranges, at most, where nobody says how many."""
RANDOM = "random"
"""What `QuantizeConfig.calibration` says for generated images."""
GIVEN = "given"
"""What it says for arrays that a program hands to `quantize`."""


class QuantizeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="verb", tag="quantize"):
    """How to quantize.

    Attributes:
        precision: ``int8``: weights and activations, with ranges from calibration images. ``fp8``: the same in 8-bit floats
            (E4M3), for TensorRT on GPUs that have them. ``fp16``: half precision, with FP32 where FP16 would overflow.
            ``bf16``: a hint to the engine, nothing in the file changes. ``int8-dynamic``: weights in INT8, activations by their
            own range in every run. ``int8-weight-only``: weights in INT8, arithmetic as the engine likes it.
        target: The engine that the file is for; ``portable`` is for all; None is the recipe's `compile` engine, else the first.
        calibration: Images that look like those of deployment (folder, manifest, tar shards, arrays or IDX), or ``random`` for
            generated ones: good for latency, not for accuracy; ``given`` for those that a program gives to `quantize`.
        split: Which pair of an IDX folder holds the images.
        statistics: A folder that `save_statistics` wrote, in place of images.
        save_statistics: Folder to write the statistics to.
        limit: Use at most this many images for ranges, drawn by `seed`.
        seed: Seed of the draw.
        max_bad: Unreadable images to tolerate.
        keep_fp32: For ``fp16``: parts that stay FP32 (``layernorm``, ``softmax``, ``head``, ...), or names of nodes.
        skip: Exact rewrites to leave out, by name.
        isa: Instruction set of the target's CPU; None is x86 with VNNI, where all of INT8's range can be used.
        attention: For ``int8`` on ``openvino`` and ``tensorrt``, and ``fp8``: quantize the products inside attention too;
            faster, less exact. Refused where TensorRT has no such kernel: by head size, and for ``int8`` by tokens.
        merge_tokens: As `ExportConfig.merge_tokens`: faster, another function, told by the comparison with the source.
        lane_db: Ratio of signal to noise, in dB, below which the input of a layer is quantized at run time instead; on
            ``tensorrt`` the layer stays FP16.
        verify: Compare with the source, and measure, on the target's engine.
        keep_original: Copy the PyTorch original's weights into the artifact, for a box where the export does not lie beside it.
        verify_images: Images held back from the ranges for that, at most; held back also when nothing is compared.
        threads: Threads of each engine; None is the number of cores.
    """

    precision: QuantizedPrecision = "int8"
    target: str | None = None
    calibration: str | None = None
    split: str | None = None
    statistics: str | None = None
    save_statistics: str | None = None
    limit: int = CALIBRATION_IMAGES
    seed: int = 0
    max_bad: int = 0
    keep_fp32: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    isa: InstructionSet | None = None
    attention: bool = False
    merge_tokens: str | None = None
    lane_db: float = 20.0
    verify: bool = True
    verify_images: int = 256
    keep_original: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse combinations that mean nothing."""
        require_positive(self, "limit", "threads", "verify_images")
        _seed(self.seed)
        if self.max_bad < 0:
            raise UsageError("VD2003", f"max_bad is {self.max_bad}", fix="use 0 or more")
        if self.calibration is not None and self.statistics is not None:
            raise UsageError("VD2010", "calibration images and recorded statistics were both given", fix="give one of them")
        if self.precision in ("int8", "fp8") and self.calibration is None and self.statistics is None:
            fix = "give --data DIR with some 128 images like those of deployment (or the word random, to try latency)"
            raise UsageError("VD2010", f"{self.precision.upper()} needs calibration images", fix=fix)

    def map_paths(self, whole: Callable[[str], str]) -> QuantizeConfig:
        """The same with other paths: ``whole`` is applied to each that was given."""
        given = {name: getattr(self, name) for name in ("calibration", "statistics", "save_statistics")}
        paths = {name: path and (path if path in (RANDOM, GIVEN) else whole(path)) for name, path in given.items()}
        return msgspec.structs.replace(self, **paths)


class CompileConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="verb", tag="compile"):
    """How to compile an engine.

    Attributes:
        backend: The engine.
        device: Where it will run, as the engine calls it (``cpu``, ``gpu``, ``npu``, ``auto``, ``cuda``); None is its usual one.
        precision: What float parts are computed in; None is what the file holds (f32, or bf16 if it was made for that).
        hint: Whether one batch shall be fast, or many at once.
        threads: Threads of one run; None is the number of cores.
        streams: Runs at a time; None is one for ``latency``, the engine's choice for ``throughput``.
        batch: The one batch size that the engine takes; None leaves it as it is in the file.
        usual_batch: For TensorRT and a dynamic batch: the size that kernels are chosen for.
        largest_batch: For TensorRT and a dynamic batch: the largest size that the engine takes.
        optimise: ``latency`` measures the settings that matter on this machine, and keeps the fastest.
        workspace_mib: For TensorRT: scratch memory that a kernel may use; None is by the memory that is free.
        effort: For TensorRT: the builder's optimisation level, 0 (quick) to 5.
        weakly_typed: For TensorRT 10: let the builder choose precisions, where it can't build the typed graph.
        compatible: For TensorRT: an engine that later versions can read; slower.
        refit: For TensorRT: an engine whose weights can be replaced.
        architectures: For TensorRT-RTX: compute capabilities to compile for (``8.9``); none means all that it knows.
        keep_original: As `QuantizeConfig.keep_original`.
        rebuilds: How often an engine that came out wrong is built again.
        seconds: Longest time for one build.
    """

    backend: str
    device: str | None = None
    precision: FloatPrecision | None = None
    hint: Hint = "latency"
    threads: int | None = None
    streams: int | None = None
    batch: int | None = None
    usual_batch: int = 1
    largest_batch: int = 8
    optimise: Goal | None = None
    workspace_mib: int | None = None
    effort: int = 3
    weakly_typed: bool = False
    compatible: bool = False
    refit: bool = False
    architectures: tuple[str, ...] = ()
    keep_original: bool = False
    rebuilds: int = 2
    seconds: float = 3600.0

    def __post_init__(self) -> None:
        """Refuse what no engine takes."""
        require_positive(self, "threads", "streams", "batch", "usual_batch", "largest_batch", "workspace_mib")
        if self.usual_batch > self.largest_batch:
            message = f"the usual batch is {self.usual_batch}, the largest {self.largest_batch}"
            raise UsageError("VD2003", message, fix="make the largest at least the usual one")
        if not 0 <= self.effort <= 5:
            raise UsageError("VD2003", f"effort is {self.effort}", fix="use 0 to 5")
        if self.rebuilds < 0 or not 0 < self.seconds <= 86_400:
            message = f"rebuilds is {self.rebuilds} (0 or more), seconds is {self.seconds:g} (above 0, a day at most)"
            raise UsageError("VD2003", message)


class ValidateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to prove parity and accuracy.

    Attributes:
        data: Images (folder, manifest, tar shards, arrays or IDX), or None for parity on generated pixels.
        split: Which pair of an IDX folder holds the images.
        limit: Use at most this many images, drawn by `seed`.
        seed: Seed of the draw.
        batch: Images a run.
        max_bad: Unreadable images to tolerate.
        allow_shifted_labels: Measure accuracy also where every label is one too high or too low.
        max_drop: Top-1 that may be lost, as ``"0.5 pt"``; a miss is exit status 1. The estimate decides if need be.
        min_agreement: Images with the reference's answer, as ``"99 %"``; a miss is exit status 1.
        layers: Compare every block too, and inside it attention and MLP, and name the first that breaks.
        backends: Engines to compare with PyTorch; empty means all that are installed.
        threads: Threads of each engine; None is the number of cores.
    """

    data: str | None = None
    split: str | None = None
    limit: int | None = None
    seed: int = 0
    batch: int = 32
    max_bad: int = 0
    allow_shifted_labels: bool = False
    max_drop: str | None = None
    min_agreement: str | None = None
    layers: bool = False
    backends: tuple[str, ...] = ()
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse sizes below one."""
        require_positive(self, "limit", "batch", "threads")
        _seed(self.seed)
        if self.max_bad < 0:
            raise UsageError("VD2003", f"max_bad is {self.max_bad}", fix="use 0 or more")


class BenchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to measure latency.

    Attributes:
        batches: Batch sizes, each measured on its own.
        rounds: Interleaved rounds; every subject runs once a round, for `seconds` at least.
        warmup: Runs before the first round, not counted.
        backends: Engines to measure; empty means all that are installed. The PyTorch original always runs.
        threads: Threads of each engine; None is the number of cores. Several counts have rows of their own, the original's too.
        profile: Tell where the time goes, too, by kind of operation and by block, as each engine's own profiler has it.
    """

    batches: tuple[int, ...] = (1,)
    rounds: int = 10
    seconds: float = 0.3
    warmup: int = 5
    backends: tuple[str, ...] = ()
    threads: int | tuple[int, ...] | None = None
    profile: bool = False

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """The counts that were named, if any."""
        named = self.threads if isinstance(self.threads, tuple) else (self.threads,)
        return tuple(dict.fromkeys(count for count in named if count is not None))

    def __post_init__(self) -> None:
        """Refuse sizes below one."""
        require_positive(self, "rounds", "threads", "batches")
        if () in (self.batches, self.threads):
            raise UsageError("VD2003", "batches or threads is an empty list", fix="give at least one")
        if not 0 < self.seconds < 3600 or self.warmup < 0:
            raise UsageError("VD2003", f"seconds is {self.seconds} (in 0 to 3600), warmup is {self.warmup} (0 or more)")


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole job.

    Attributes:
        model: Which model.
        export: How to export it.
        quantize: How to quantize the export, or several ways, one a target (``[[quantize]]`` each); None leaves the stage out.
        compile: How to compile what was quantized for the engine, else the export; or several ways (``[[compile]]``), or None.
        validate: How to prove parity and accuracy; None leaves the stage out.
        bench: How to measure latency; None leaves the stage out.
    """

    model: ModelConfig
    export: ExportConfig = msgspec.field(default_factory=ExportConfig)
    quantize: QuantizeConfig | tuple[QuantizeConfig, ...] | None = None
    compile: CompileConfig | tuple[CompileConfig, ...] | None = None
    validate: ValidateConfig | None = None
    bench: BenchConfig | None = None

    @property
    def quantizations(self) -> dict[str, QuantizeConfig]:
        """Stage to settings: ``quantize``; where there are several ways, ``quantize-TARGET`` each."""
        if isinstance(self.quantize, tuple):
            return {f"quantize-{each.target}": each for each in self.quantize}
        return {} if self.quantize is None else {"quantize": self.quantize}

    @property
    def compilations(self) -> dict[str, CompileConfig]:
        """Stage to settings: ``compile``; where there are several engines, ``compile-BACKEND`` each."""
        if isinstance(self.compile, tuple):
            return {f"compile-{each.backend}": each for each in self.compile}
        return {} if self.compile is None else {"compile": self.compile}

    def map_quantize(
        self, change: Callable[[QuantizeConfig], QuantizeConfig]
    ) -> QuantizeConfig | tuple[QuantizeConfig, ...] | None:
        """`quantize` with every way changed."""
        if isinstance(self.quantize, tuple):
            return tuple(change(each) for each in self.quantize)
        return self.quantize and change(self.quantize)

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe; paths in it are taken relative to the recipe's folder.

        Raises:
            InputError: VD3001, unreadable.
            UsageError: VD2007 not TOML; VD2002 unknown key (with the nearest name and the line); VD2003 bad value.
        """
        recipe = read_toml(path, cls)
        beside, source = path.absolute().parent, recipe.model.source
        file = (beside / source).exists() or "/" in source or Path(source).suffix in FILES
        if ".py:" in source if recipe.model.module else file:
            source = str(beside / source)
        weights, contract = (name and str(beside / name) for name in (recipe.model.weights, recipe.model.contract))
        export, validate = recipe.export, recipe.validate
        if validate is not None and validate.data is not None:
            validate = msgspec.structs.replace(validate, data=str(beside / validate.data))
        labels = str(beside / said) if isinstance(said := recipe.model.labels, str) else said
        model = msgspec.structs.replace(recipe.model, source=source, weights=weights, contract=contract, labels=labels)
        if export.data is not None:
            export = msgspec.structs.replace(export, data=str(beside / export.data))
        quantize = recipe.map_quantize(lambda config: config.map_paths(lambda name: str(beside / name)))
        return msgspec.structs.replace(recipe, model=model, export=export, quantize=quantize, validate=validate)


def _seed(seed: int) -> None:
    if not 0 <= seed < 1 << 63:
        raise UsageError("VD2003", f"seed is {seed}", fix="use a number from 0 to 2^63 - 1")
