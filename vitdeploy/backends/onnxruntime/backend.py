"""ONNX Runtime: the file in the precisions that are written in it, on the CPU or, where the build has them, CUDA and TensorRT.

Compiling optimises the graph once and keeps the result: the same kernels, ready in less time. It is used only with the
version, instruction sets and settings that it was made with; else the source beside it is optimised again.

Executed here: the CPU. The providers of CUDA and TensorRT were never executed; only how they are chosen and refused is tested.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime

from vitdeploy import files, machine
from vitdeploy.artifact import RECORD, Artifact
from vitdeploy.backends import cache, settings
from vitdeploy.backends.base import (
    Compiled,
    Kernel,
    OpenConfig,
    Outputs,
    Profile,
    Tensor,
    check_tensor,
    count_threads,
    require_f32,
)
from vitdeploy.backends.onnxruntime.kernels import read_kernels, read_profile
from vitdeploy.errors import InputError, MachineError, UsageError, library, nearest
from vitdeploy.onnxfile import check
from vitdeploy.onnxfile.nodes import read_nodes
from vitdeploy.onnxfile.summary import read_graph
from vitdeploy.recipe import CompileConfig

_PROVIDERS: dict[str, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""Device to providers; the first must be in use, those behind it take what it can't."""
_PROVIDER_SETTINGS = {"CUDAExecutionProvider": {"use_tf32": "0"}}  # float32 is float32, as on every other device
_WRITABLE = ("CPUExecutionProvider", "CUDAExecutionProvider")
"""Providers whose optimised graph can be written; TensorRT's holds engines."""
_TAKES = ("threads", "device", "precision", "spin", "arena")
_COMPILES = ("backend", "device", "precision", "threads", "batch", "optimise", "rebuilds", "seconds")
_LONGEST = 120
_SOURCE, _OPTIMISED, _DATA = "model.onnx", "optimised.onnx", "optimised.bin"


class OnnxRuntime:
    """Opens artifacts in ONNX Runtime, and optimises them beforehand."""

    name = "onnxruntime"

    def open(self, artifact: Artifact, config: OpenConfig) -> OnnxRuntimeRunner:
        """Load the file with all graph optimisations, or one that was optimised before.

        Raises:
            UsageError: VD2011, a setting that this engine does not have, a device that it does not know, another precision
                than ``f32``; VD2013, the artifact is another engine's.
            InputError: VD3010, the record is damaged.
            MachineError: VD4010, the device can't be used; VD4004, the engine refused the model; VD4006, out of memory.
        """
        return OnnxRuntimeRunner(artifact, _merge_settings(artifact, config))

    def compile(self, artifact: Artifact, config: CompileConfig, folder: Path, *, again: bool = False) -> Compiled:
        """Optimise the graph and keep the result, with the source beside it; see `Compiler.compile`.

        On another device than the CPU only the settings are kept: what its provider makes of the graph can't be written.

        Raises:
            UsageError: VD2011, settings that this engine does not have, or a batch that the file can't take.
            InputError: VD3026, the names of the source's data files are taken.
            MachineError: VD4010 device not usable; VD4011 the batch was not frozen; VD4004, VD4006.
        """
        settings.require_only(self.name, config, (*_COMPILES, *(("streams",) if config.streams == 1 else ())))
        run = OpenConfig(threads=config.threads, device=config.device or "cpu", precision=config.precision)
        run = _merge_settings(artifact, run)
        providers = _require_providers(run.device or "cpu")
        axis = _batch_axis(artifact.model, config.batch)
        check.copy(artifact.model, folder / _SOURCE, taken=(_OPTIMISED, _DATA, cache.NAME, RECORD))
        options = make_options(run, axis)
        keeps = run.device == "cpu"
        if keeps:
            _write_to(options, folder / _OPTIMISED)
        session = _open_session(folder / _SOURCE, options, providers)
        size = session.get_inputs()[0].shape[0]
        if config.batch is not None and size != config.batch:
            raise MachineError("VD4011", f"onnxruntime takes batches of {size}, not of {config.batch}", file=artifact.model)
        facts: dict[str, object] = {"onnxruntime": onnxruntime.__version__, "providers": session.get_providers()}
        if not keeps:
            note = f"the optimised graph of {providers[0]} is not kept: it is made whenever the model is opened"
            return Compiled(entry=_SOURCE, run=run, facts=facts, notes=(note,))
        made = _stamp(config.batch)
        cache.write(folder, made)
        facts |= {"optimised_bytes": sum(path.stat().st_size for path in folder.glob("optimised.*")), "made": made}
        return Compiled(entry=_OPTIMISED, run=run, facts=facts)

    def candidates(self, config: CompileConfig) -> tuple[OpenConfig, ...]:
        """Threads, spinning and the arena, as far as they are left open; see `Compiler.candidates`.

        Raises:
            UsageError: VD2011, an unknown device.
        """
        usual = OpenConfig(threads=config.threads, device=config.device or "cpu", precision=config.precision)
        _find_providers(usual.device or "cpu")
        counts = [config.threads]
        if config.threads is None and machine.physical_cores() != machine.logical_cores():
            counts.append(machine.physical_cores())
        spinning = [
            OpenConfig(threads=count, device=usual.device, precision=usual.precision, spin=spin)
            for count in counts
            for spin in (None, False)
        ]
        arena = OpenConfig(threads=config.threads, device=usual.device, precision=usual.precision, arena=False)
        return (*spinning, arena)


class OnnxRuntimeRunner:
    """A session. Intra-operator threads as asked, operators one after the other: a ViT has no parallel branches."""

    def __init__(self, artifact: Artifact, config: OpenConfig) -> None:
        self._artifact = artifact
        self._config = config
        self._providers = _require_providers(config.device or "cpu")
        self._model, optimised = artifact.model, None
        if artifact.record.kind == OnnxRuntime.name:
            self._session, optimised = self._of_compiled()
        else:
            self._session = _open_session(self._model, make_options(config), self._providers)
        self._input = self._session.get_inputs()[0]
        self._names = [output.name for output in self._session.get_outputs()]
        self.settings: dict[str, object] = {
            "backend": OnnxRuntime.name,
            "version": onnxruntime.__version__,
            "threads": count_threads(config),
            "device": config.device or "cpu",
            "precision": artifact.record.precision,
        }
        more = {"spin": config.spin, "arena": config.arena, "optimised": optimised}
        self.settings |= {name: value for name, value in more.items() if value is not None}

    def _of_compiled(self) -> tuple[Any, str | None]:
        """The session of a compiled artifact, and whether the graph that was optimised beforehand is in use."""
        if self._artifact.record.entry != _OPTIMISED:
            return self._of_source(), None
        batch = _batch(self._artifact)
        why = cache.explain_misfit(self._artifact.locate(cache.NAME).parent, _stamp(batch))
        if not why:
            try:
                return _open_session(self._model, make_options(self._config, optimise=False), self._providers), "yes"
            except MachineError as error:
                if error.code != "VD4004":
                    raise
                why = error.message[:_LONGEST]
        return self._of_source(), f"no: {why}"

    def _of_source(self) -> Any:  # noqa: ANN401 (onnxruntime.InferenceSession, which has no types)
        self._model = self._artifact.locate(_SOURCE)
        axes = _batch_axis(self._model, _batch(self._artifact))
        return _open_session(self._model, make_options(self._config, axes), self._providers)

    @property
    def batch(self) -> int | None:
        """The one batch size that the model takes, or None when it is dynamic."""
        first = self._input.shape[0] if self._input.shape else None
        return first if isinstance(first, int) else None

    def run(self, tensor: Tensor) -> Outputs:
        """Run one batch; see `Runner.run`. All outputs of the file, by name."""
        pixels = check_tensor(tensor, self._artifact.spec.input, self.batch)
        with library("onnxruntime", self._model):
            values = self._session.run(self._names, {self._input.name: pixels})
        return dict(zip(self._names, values, strict=True))

    def kernels(self) -> tuple[Kernel, ...]:
        """What runs; see `Runner.kernels`. The model is loaded once more, and written to a temporary folder as optimised.

        MatMulNBits counts as ``int8-dynamic`` where the file asks for it: whether this CPU has the kernel is not told, and
        without one (neither AVX2 nor Arm's dot product) it decompresses the weights and runs in float. TensorRT's kernels are
        not told: none are returned.
        """
        if self._providers[0] not in _WRITABLE:
            return ()
        source = self._model if self._optimises() else self._artifact.locate(_SOURCE)
        with files.temporary_folder() as folder:
            options = self._same_options()
            _write_to(options, folder / _OPTIMISED)
            _open_session(self._model, options, self._providers)
            return read_kernels(read_nodes(folder / _OPTIMISED), read_nodes(source))

    def profile(self, tensor: Tensor, runs: int) -> Profile:
        """Where the time goes; see `Runner.profile`. The model is loaded once more, with the profiler on."""
        pixels = check_tensor(tensor, self._artifact.spec.input, self.batch)
        with files.temporary_folder() as folder:
            options = self._same_options()
            options.enable_profiling = True
            options.profile_file_prefix = str(folder / "profile")
            session = _open_session(self._model, options, self._providers)
            with library("onnxruntime", self._model):
                for _ in range(1 + runs):
                    session.run(self._names, {self._input.name: pixels})
                return read_profile(files.read_bytes(Path(session.end_profiling())), runs)

    def _optimises(self) -> bool:
        """Whether the graph is optimised when it is loaded, and was not before."""
        return self.settings.get("optimised") != "yes"

    def _same_options(self) -> Any:  # noqa: ANN401 (onnxruntime.SessionOptions)
        """Options that give another session of the same kernels."""
        axis = _batch_axis(self._model, _batch(self._artifact)) if self._optimises() else {}
        return make_options(self._config, axis, optimise=self._optimises())

    def close(self) -> None:
        """Drop the session."""
        self._session = None


def _merge_settings(artifact: Artifact, config: OpenConfig) -> OpenConfig:
    usual = [name for name, value in (("hint", "latency"), ("streams", 1)) if getattr(config, name) == value]
    merged = settings.merge_settings(OnnxRuntime.name, artifact, config, (*_TAKES, *usual))
    require_f32(OnnxRuntime.name, merged)
    return merged


def _find_providers(device: str) -> tuple[str, ...]:
    if device not in _PROVIDERS:
        message = f"the backend 'onnxruntime' runs on {', '.join(map(repr, _PROVIDERS))}, not on {device!r}"
        raise UsageError("VD2011", message, fix=nearest(device, _PROVIDERS) or "leave the device out")
    return _PROVIDERS[device]


def _require_providers(device: str) -> tuple[str, ...]:
    """The providers of a device, which this build has."""
    wanted = _find_providers(device)
    if wanted[0] not in (available := onnxruntime.get_available_providers()):
        message = f"this onnxruntime has no {wanted[0]}; it has {', '.join(available)}"
        raise MachineError("VD4010", message, fix="leave the device out, or install a build that has it (onnxruntime-gpu)")
    return tuple(provider for provider in wanted if provider in available)


def _has_floats_of_8_bits(model: Path) -> bool:
    try:
        return "float8e4m3fn" in read_graph(model).elements
    except InputError:  # a damaged file: the engine says it in its own way
        return False


def _open_session(model: Path, options: Any, providers: tuple[str, ...]) -> Any:  # noqa: ANN401 (onnxruntime has no types)
    """A session whose first provider is the wanted one: ONNX Runtime falls back to the CPU with no more than a warning."""
    if _has_floats_of_8_bits(model):
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # it takes 8-bit floats for integers, and then fails
    with library("onnxruntime", model):
        wanted = [(provider, _PROVIDER_SETTINGS.get(provider, {})) for provider in providers]
        session = onnxruntime.InferenceSession(str(model), options, providers=wanted, enable_fallback=0)
        used = session.get_providers()
    if used[:1] != [providers[0]]:
        message = f"onnxruntime uses {', '.join(used)} instead of {providers[0]}"
        raise MachineError("VD4010", message, file=model, fix="check the driver and its libraries: vitdeploy doctor")
    return session


def make_options(config: OpenConfig, axes: dict[str, int] | None = None, *, optimise: bool = True) -> Any:  # noqa: ANN401
    """Options of a session; ``axes`` gives named axes a size."""
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count_threads(config)
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what fails is raised; warnings about provider choice are noise here
    for name, size in (axes or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    if config.spin is not None:
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if config.spin else "0")
    if config.arena is not None:
        options.enable_cpu_mem_arena = config.arena
    return options


def _write_to(options: Any, path: Path) -> None:  # noqa: ANN401 (onnxruntime.SessionOptions)
    """Have the optimised graph written. Weights lie beside it: mapped, not parsed, and no limit of 2 GiB."""
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", _DATA)
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")


def _stamp(batch: int | None) -> dict[str, str]:
    """What an optimised graph depends on."""
    return {
        "made by": f"onnxruntime {onnxruntime.__version__}",
        "made for": machine.instruction_sets(),
        "made with": f"all optimisations, CPUExecutionProvider, batch {batch or 'as in the file'}",
    }


def _batch(artifact: Artifact) -> int | None:
    """The batch that a compiled artifact was frozen to."""
    config = artifact.record.config
    return config.batch if isinstance(config, CompileConfig) and config.backend == OnnxRuntime.name else None


def _batch_axis(model: Path, batch: int | None) -> dict[str, int]:
    """The name of the file's batch axis with the wanted size; empty when there is nothing to freeze.

    Raises:
        UsageError: VD2011, the file takes another batch only, or its axis has no name.
    """
    if batch is None:
        return {}
    inputs = read_graph(model).inputs
    axis = inputs[0].shape[0] if inputs and inputs[0].shape else ""
    if axis == batch:
        return {}
    if isinstance(axis, int) or not axis:
        message = f"takes batches of {axis} only" if axis else "has a batch axis without a name, which can't be frozen"
        raise UsageError("VD2011", message, file=model, fix="leave the batch out, or export again with it")
    return {axis: batch}
