"""What ``artifact.json`` holds beside digests: where weights came from, and the proof of the verb that made the artifact.

Each verb has a proof of its own type: `ExportProof`, `QuantizeProof`, `CompileProof`. In the file the key ``verb`` tells them
apart, as it does the verbs' settings.
"""

from __future__ import annotations

from typing import Any

import msgspec

from vitdeploy.words import FloatPrecision, Hint, Task


class Origin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where an artifact's weights came from; what does not apply is left out.

    Attributes:
        random_seed: Seed of random weights.
        module: ``package.file:factory`` of the user's own network.
        file: Name of a safetensors file by our own names.
        sha256: Digest of that file.
        source: The library that wrote a checkpoint.
        files: The checkpoint's files, name to SHA-256.
        architecture: What the checkpoint was taken for.
        mapping_sha256: Digest of a mapping file.
        matched: The mapping file's patterns, and how many tensors each decided.
        notes: What a reader should know of the reading.
        assumed: What was not read of how images are prepared: an aspect (``mean``, ``interpolation``) to what it was taken to be.
        assumed_from: What that was taken from.
        left_out: Tensors that were not used, and why.
        state_sha256: Digest of the state dict beside the model.
    """

    random_seed: int | None = None
    module: str = ""
    file: str = ""
    sha256: str = ""
    source: str = ""
    files: dict[str, str] = {}
    architecture: str = ""
    mapping_sha256: str = ""
    matched: dict[str, int] = {}
    notes: tuple[str, ...] = ()
    assumed: dict[str, str] = {}
    assumed_from: str = ""
    left_out: dict[str, str] = {}
    state_sha256: str = ""

    @property
    def assumption(self) -> str:
        """What was assumed, in a line; "" where all was read or said."""
        if not self.assumed:
            return ""
        return f"{', '.join(f'{aspect} {value}' for aspect, value in self.assumed.items())}, from {self.assumed_from}"


class ContractTrial(msgspec.Struct, frozen=True, kw_only=True):
    """The input contract beside other usual ones, on labelled images.

    Attributes:
        data: Name of the data set.
        images: How many images.
        top1: Share of them that the model recognises with its own contract.
        others: Each other contract that was tried, in words, to its top-1 minus that one, in percentage points.
        warning: Which one is better, and how to ask for it; "" when none is.
    """

    data: str
    images: int
    top1: float
    others: dict[str, Metric] = {}
    warning: str = ""


class ExportProof(msgspec.Struct, frozen=True, kw_only=True, tag_field="verb", tag="export"):
    """What was run before an export was accepted.

    Attributes:
        batches: Batch sizes at which the file was run.
        images: Images in all.
        difference: Largest |difference| from PyTorch, over all rows and outputs.
        relative: The same as a share of the standard deviation of PyTorch's output.
        company: Largest |difference| of a row from the same row in other company.
        contract: What labelled images say of the input contract; None where none were given.
        against: ``package.file:factory`` of code that it was compared with, too, to what `relative` is of that.
    """

    batches: tuple[int, ...]
    images: int
    difference: float
    relative: float
    company: float
    contract: ContractTrial | None = None
    against: dict[str, float] = {}


class Calibration(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What set the ranges.

    Attributes:
        source: Name of the data set; ``random`` for generated images, ``statistics`` for recorded ones.
        digest: Of the data set.
        images: How many images.
        folder: Of the recorded statistics.
        seen: Every image that was looked at, those held back too: 8 bytes each (`data.identity`), sorted, as base64.
    """

    source: str
    digest: str = ""
    images: int | None = None
    folder: str = ""
    seen: str = ""


class SiteChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What was chosen for one GEMM input.

    Attributes:
        tensor: Its name in the graph.
        kind: ``norm``, ``context`` or ``activation``: what makes it.
        layers: Products that read it.
        chosen: How its channels share a step.
        margin: Share of the observed range that is covered.
        error_db: Error of the layers' outputs, in dB below them.
        untouched_db: The same without equalisation.
        token_db: Signal to noise of the median token, in dB.
        scale: The step.
        zero: The zero point.
        lane: Whether it is quantized at run time, or stays float.
    """

    tensor: str
    kind: str
    layers: tuple[str, ...]
    chosen: str
    margin: float
    error_db: float
    untouched_db: float
    token_db: float
    scale: float
    zero: int
    lane: bool


class Overflow(msgspec.Struct, frozen=True):
    """A tensor that FP16 does not hold with room to spare.

    Attributes:
        node: The node that makes it; "" for an input of the graph.
        tensor: Its name.
        max_abs: Its largest |x| on the calibration images, or what follows from another tensor's.
    """

    node: str
    tensor: str
    max_abs: float


class Loss(msgspec.Struct, frozen=True):
    """What FP16 takes from a constant.

    Attributes:
        subnormal: Elements that become FP16 subnormals: kept, with fewer than 11 bits.
        vanished: Elements other than 0 that become 0.
        error: Length of the rounding error over length of the constant (Euclidean); 2e-4 is usual.
    """

    subnormal: int
    vanished: int
    error: float


class HalfResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became FP16 and what did not.

    Attributes:
        islands: What was asked to stay in FP32.
        half: Nodes in FP16.
        kept: Nodes in FP32, by name, and why.
        casts: Casts that were added.
        overflow: Tensors too large for FP16, in the order of the graph.
        unranged: FP16 tensors of which no largest value is known: nothing is promised about them.
        losses: Constants in FP16 that have subnormal or vanished elements, by name.
        epsilons: Epsilons of FP16 nodes that FP16 itself can't hold, by node; a kernel that keeps them in FP32 is not harmed.
    """

    islands: tuple[str, ...]
    half: int
    kept: dict[str, str]
    casts: int
    overflow: tuple[Overflow, ...] = ()
    unranged: int = 0
    losses: dict[str, Loss] = {}
    epsilons: dict[str, float] = {}


class Census(msgspec.Struct, frozen=True, kw_only=True):
    """A plan against what runs.

    Attributes:
        engine: Whose kernels they are.
        counts: ``role/precision`` to how many kernels, most first; without what is neither product nor convolution.
        planned: Part of the plan to how many nodes: ``gemms``, ``dynamic``, ``attention``.
        executed: The same parts to how many of these nodes run in 8 bits.
        missing: Planned nodes that run in float, or of which there is no kernel, in the plan's order.
        untold: Planned nodes of which an engine that does not tell everything says nothing.
        fallbacks: Nodes that run in float on inputs that were quantized, planned or not.
        reasons: Likely causes of what is missing.
    """

    engine: str
    counts: dict[str, int]
    planned: dict[str, int]
    executed: dict[str, int]
    missing: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


class Metric(msgspec.Struct, frozen=True):
    """One number.

    Attributes:
        value: The number, in `unit`. NaN is allowed and never hidden.
        unit: ``ms``, ``images/s``, ``dB``, ``share`` of 1, ``count``, ``ratio``, ``points`` (of 100), ``MiB``, ``nats``, or "".
        low: Lower end of the 95 % interval, if there is one.
        high: Upper end.
    """

    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None


class Worth(msgspec.Struct, frozen=True, kw_only=True):
    """What a conversion gave and took.

    Attributes:
        engine: Where it was measured.
        reference: What outputs were compared with: ``pytorch``, or ``source`` where the original is not there.
        images: Images compared.
        held_back: Whether none of them set a range.
        task: What the outputs are, which says what is compared.
        agreement: Share of images with the same class or nearest neighbour, or of labels decided alike; None for numbers.
        divergence: Mean Kullback-Leibler divergence from the reference, in nats, with its 95 % interval; None without classes.
        cosine: Mean cosine of the outputs; None for numbers, or when nothing was compared.
        correlation: Of numbers over images; None for other tasks.
        difference: Mean |difference| of the outputs; None when nothing was compared.
        speedup: Source's latency over this one's, batch 1, with its interval; None when nothing was timed.
        other: The same against the other cheap precision on this engine (``bf16``), where the CPU has it.
        latency_ms: Median latency at batch 1 of each form.
        size_mib: Size of each form's file.
        verdict: One sentence.
    """

    engine: str
    reference: str
    images: int
    held_back: bool
    task: Task = "single_label"
    agreement: Metric | None = None
    divergence: Metric | None = None
    cosine: float | None = None
    correlation: float | None = None
    difference: float | None = None
    speedup: Metric | None = None
    other: Metric | None = None
    latency_ms: dict[str, float] = {}
    size_mib: dict[str, float] = {}
    verdict: str = ""


class QuantizeProof(msgspec.Struct, frozen=True, kw_only=True, tag_field="verb", tag="quantize"):
    """What was done to a graph and shown of it before it was accepted.

    Attributes:
        rewrites: Exact rewrites, and how often each applied.
        rewritten: Largest difference of the rewritten float graph, as a share of the output's deviation; None for no rewrite.
        sites: What was chosen for each GEMM input.
        notes: What a reader should know.
        calibration: What set the ranges, if anything did.
        fp16: What became FP16, if anything did.
        census: Engine to what it runs.
        worth: What was gained and lost; None when it was not measured.
        verdict: One sentence; "" when nothing was said.
    """

    rewrites: dict[str, int] = {}
    rewritten: float | None = None
    sites: tuple[SiteChoice, ...] = ()
    notes: tuple[str, ...] = ()
    calibration: Calibration | None = None
    fp16: HalfResult | None = None
    census: dict[str, Census] = {}
    worth: Worth | None = None
    verdict: str = ""


class OpenConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine runs. A compiled artifact brings its own settings; what is given here goes before them.

    Attributes:
        threads: Threads inside one run; None is the number of cores this process may use.
        device: ``cpu``, or what the backend calls another device; None is the artifact's, or the backend's usual one.
        precision: What float parts are computed in, whatever the file holds; None is ``f32``, ``bf16`` if made for that.
        hint: ``latency`` for one batch at a time, ``throughput`` for many at once.
        streams: Runs at a time; None is one for ``latency``, the engine's choice for ``throughput``.
        spin: Whether idle threads wait in a busy loop; None is the engine's choice. ONNX Runtime and TensorRT only.
        arena: Whether memory of one run is kept for the next; None is the engine's choice. ONNX Runtime only.
        graph: Whether a run is replayed as one CUDA graph; None is yes where it can be. TensorRT only.
    """

    threads: int | None = None
    device: str | None = None
    precision: FloatPrecision | None = None
    hint: Hint | None = None
    streams: int | None = None
    spin: bool | None = None
    arena: bool | None = None
    graph: bool | None = None


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """What running an engine has shown.

    Attributes:
        settings: The runner's.
        batch: The one batch size that it takes, or None for any.
        census: What it runs, as far as it tells.
        golden: The engine that computed the outputs which these were compared with.
        limit: Largest distance allowed; None when nothing was compared.
        distances: Largest distance from the golden outputs, by what was run.
    """

    settings: dict[str, object] = {}
    batch: int | None = None
    census: Census | None = None
    golden: str = ""
    limit: float | None = None
    distances: dict[str, float] = {}


class Optimisation(msgspec.Struct, frozen=True, kw_only=True):
    """Settings that were measured side by side.

    Attributes:
        measured: Settings in words to median latency in ms.
        chosen: The fastest; "" when none passed.
        left_out: Settings whose outputs were too far off, and how.
        notes: Of the measurement.
    """

    measured: dict[str, float] = {}
    chosen: str = ""
    left_out: dict[str, str] = {}
    notes: tuple[str, ...] = ()


class Rivalry(msgspec.Struct, frozen=True, kw_only=True):
    """Two precisions that were measured side by side.

    Attributes:
        latency_ms: Median latency by name.
        notes: Of the measurement.
    """

    latency_ms: dict[str, float]
    notes: tuple[str, ...] = ()


class CompileProof(msgspec.Struct, frozen=True, kw_only=True, tag_field="verb", tag="compile"):
    """How an engine was built, and what was shown of it.

    Attributes:
        run: How to run it where the caller says nothing.
        facts: What the engine's builder tells, for people.
        build_s: Seconds of the build.
        builds: The build that passed, from 1.
        optimise: Settings that were measured, if any were.
        audit: What running it has shown; None for an engine whose device was not here.
        notes: What a reader should know.
        rival: The other precision's measurement, if there was one.
        verdict: Which of two was kept, and why; "" without a rival.
        calibration: What set the ranges of what it was built from.
    """

    run: OpenConfig = OpenConfig()
    facts: dict[str, Any] = {}
    build_s: float = 0.0
    builds: int = 1
    optimise: Optimisation | None = None
    audit: Audit | None = None
    notes: tuple[str, ...] = ()
    rival: Rivalry | None = None
    verdict: str = ""
    calibration: Calibration | None = None
