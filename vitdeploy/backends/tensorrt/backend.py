"""TensorRT and TensorRT-RTX: engines built where they run, by one code for both.

An artifact of theirs holds ``model.plan``, the ONNX file that it was built from, so that it can be built again, and
``engine.json``: what it was built for, and the proof that it was built here.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vitdeploy import files
from vitdeploy.artifact import RECORD, Artifact
from vitdeploy.backends.base import Compiled, OpenConfig
from vitdeploy.backends.settings import merge_settings
from vitdeploy.backends.tensorrt import builder, library, rules
from vitdeploy.backends.tensorrt.key import EngineKey, Seal, require_same, require_secret, seal, verify
from vitdeploy.backends.tensorrt.place import Place, look_around, read_ordinal
from vitdeploy.backends.tensorrt.profile import read_capability
from vitdeploy.backends.tensorrt.timings import timing_cache
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.errors import library as seam
from vitdeploy.onnxfile import check
from vitdeploy.onnxfile.summary import read_graph
from vitdeploy.recipe import CompileConfig

if TYPE_CHECKING:
    from vitdeploy.backends.tensorrt.runner import TensorRtRunner

PLAN = "model.plan"
SOURCE = "model.onnx"
SHEET = "engine.json"
SCHEMA = 1
_OPTIONS = ("batch", "usual_batch", "largest_batch", "workspace_mib", "effort", "compatible", "refit", "architectures")
"""Settings that change the engine."""


class Sheet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``engine.json`` says.

    Attributes:
        schema_version: Version of this file.
        key: All that the engine depends on.
        seal: Proof that engine and key were made here.
        facts: How it was built; not sealed.
    """

    schema_version: int = SCHEMA
    key: EngineKey
    seal: Seal
    facts: dict[str, Any] = {}


class TensorRt:
    """Builds and runs engines of NVIDIA TensorRT 10.3 to 11.4.

    Raises:
        MachineError: VD4001, TensorRT is not installed; VD4004, it can't be loaded.
    """

    name = "tensorrt"

    def __init__(self) -> None:
        self._module: Any = library.load(self.name)

    def open(self, artifact: Artifact, config: OpenConfig) -> TensorRtRunner:
        """Load an engine that was built here; its origin is checked before any library sees its bytes.

        Raises:
            UsageError: VD2013, the artifact is not an engine of this backend; VD2011, a setting that it does not have.
            TrustError: VD7004, the engine was built elsewhere or for something else, or changed.
            InputError: VD3010, a file of the artifact is missing or damaged.
            MachineError: VD4010, there is no GPU that can be used; VD4004, VD4006 from the engine.
        """
        config = merge_settings(self.name, artifact, config, ("threads", "device", "spin", "graph"))
        plan, key = self._read_trusted(artifact)
        place = look_around(read_ordinal(config.device))
        if place.device is None:
            message = f"no CUDA device: {place.reason}"
            raise MachineError("VD4010", message, file=artifact.model, fix="run this on the machine with the GPU")
        require_same(key, self._key(place, key.onnx, artifact, None), artifact.model, self._again(artifact))
        from vitdeploy.backends.tensorrt.runner import TensorRtRunner

        return TensorRtRunner(self._module, plan, artifact, config)

    def compile(self, artifact: Artifact, config: CompileConfig, folder: Path, *, again: bool = False) -> Compiled:
        """Build an engine for the GPU of this machine; see `Compiler.compile`.

        Raises:
            UsageError: VD2011, a setting that it does not have; VD2013, the artifact is an engine, or for another engine.
            InputError: VD3026, naming what the engine would refuse or get wrong, and the remedy.
            MachineError: VD4010 no GPU; VD4011 refused by NVIDIA's parser or builder; VD4004, VD4006.
        """
        self._require_onnx(artifact)
        require_secret()  # before a build that may take long
        place = look_around(read_ordinal(config.device))
        builder.require_supported(self._module, config, place)
        rtx = library.is_rtx(self._module)
        notes = rules.check(artifact.model, rules.Target(rtx, self._capabilities(config, place)))
        source = folder / SOURCE
        check.copy(artifact.model, source, taken=(PLAN, SHEET, RECORD))
        key = self._key(place, _digest(source), artifact, config)
        cache = None if rtx else timing_cache(key)
        if again and cache is not None:
            cache.unlink(missing_ok=True)  # with it the builder would choose the same kernels
            cache = None
        built = builder.build(self._module, source, config, place, cache)
        facts = {**built.facts, "key": msgspec.to_builtins(key), "plan_sha256": hashlib.sha256(built.plan).hexdigest()}
        if place.device is not None:
            facts["device"] = {**place.device._asdict(), "driver": place.driver, "cuda": place.runtime}
            facts["engine"] = self._summarize_if_possible(built.plan, folder, config)
        files.write(folder / PLAN, built.plan)
        sheet = Sheet(key=key, seal=seal(built.plan, key), facts=facts)
        files.write(folder / SHEET, msgspec.json.format(msgspec.json.encode(sheet), indent=2) + b"\n")
        return Compiled(entry=PLAN, run=OpenConfig(device=config.device), facts=facts, notes=(*notes, *built.notes))

    def device(self) -> str:
        """The GPU that engines run on.

        Raises:
            MachineError: VD4010, there is none that can be used; TensorRT-RTX compiles all the same.
        """
        place = look_around()
        if place.device is None:
            more = "; engines can be compiled here all the same" if library.is_rtx(self._module) else ""
            raise MachineError("VD4010", f"no CUDA device: {place.reason}{more}")
        return f"{place.device.name} (compute capability {place.device.capability})"

    def candidates(self, config: CompileConfig) -> tuple[OpenConfig, ...]:
        """Nothing to choose from: the builder has measured its kernels already."""
        return ()

    def _read_trusted(self, artifact: Artifact) -> tuple[bytes, EngineKey]:
        """The engine's bytes and its key, both shown to be of this machine and of the ONNX file beside them."""
        again, path = self._again(artifact), artifact.folder / SHEET
        try:
            sheet = msgspec.json.decode(files.read_bytes(path, files.LARGEST_TEXT), type=Sheet)
            plan = files.read_bytes(artifact.model)
        except (OSError, msgspec.MsgspecError, RecursionError) as exc:
            raise InputError("VD3010", f"is missing or damaged: {exc}", file=path, fix=again) from exc
        if sheet.schema_version != SCHEMA or sheet.key.backend != self.name:
            message = f"has schema {sheet.schema_version} of {sheet.key.backend}, expected {SCHEMA} of {self.name}"
            raise InputError("VD3010", message, file=path, fix=again)
        verify(plan, sheet.key, sheet.seal, artifact.model, again)
        source = artifact.folder / SOURCE
        onnx = _digest(source) if source.is_file() else sheet.key.onnx
        now = msgspec.structs.replace(
            sheet.key, onnx=onnx, tensorrt=str(self._module.__version__), spec=_digest_spec(artifact) if sheet.key.spec else ""
        )
        require_same(sheet.key, now, artifact.model, again)
        return plan, sheet.key

    def _key(self, place: Place, onnx: str, artifact: Artifact, config: CompileConfig | None) -> EngineKey:
        """The key of what is built here and now; without the device for TensorRT-RTX, whose engines have none."""
        settings = {} if config is None else {name: msgspec.to_builtins(getattr(config, name)) for name in _OPTIONS}
        key = EngineKey(
            backend=self.name,
            tensorrt=str(self._module.__version__),
            typing="weak" if config is not None and config.weakly_typed else "strong",
            options=settings,
            onnx=onnx,
            spec=_digest_spec(artifact),
        )
        if place.device is None or library.is_rtx(self._module):
            return key
        device = place.device
        return msgspec.structs.replace(
            key, device=device.name, capability=device.capability, driver=place.driver, cuda=place.runtime
        )

    def _capabilities(self, config: CompileConfig, place: Place) -> tuple[tuple[int, int], ...]:
        """Of the devices that are built for, as far as they are known."""
        if library.is_rtx(self._module):
            return tuple(read_capability(text) for text in config.architectures)
        return () if place.device is None else (read_capability(place.device.capability),)

    def _summarize_if_possible(self, plan: bytes, folder: Path, config: CompileConfig) -> dict[str, object]:
        """`_summary`, or why there is none: an inspector that fails does not make the engine worse."""
        try:
            return self._summary(plan, folder, config)
        except MachineError as error:
            if error.code != "VD4004":
                raise
            return {"not_told": error.message}

    def _summary(self, plan: bytes, folder: Path, config: CompileConfig) -> dict[str, object]:
        from vitdeploy.backends.tensorrt.inspection import summary

        log = library.log(self._module)
        with log.listening() as said, seam("TensorRT", folder / PLAN):
            runtime = self._module.Runtime(log.native)
            runtime.engine_host_code_allowed = config.compatible  # such an engine carries its own runtime, as code
            engine = runtime.deserialize_cuda_engine(plan)
            if engine is None:
                errors = [message.text for message in said if message.severity == "error"]
                message = (
                    f"the engine that was just built can't be loaded: {' '.join((errors or ['no reason given'])[0].split())}"
                )
                raise MachineError("VD4011", message, file=folder / PLAN)
            return summary(self._module, engine)

    def _require_onnx(self, artifact: Artifact) -> None:
        kind, made_for = artifact.record.kind, artifact.engine
        if kind != "onnx":
            message = f"is an engine of {kind} already"
            raise UsageError("VD2013", message, file=artifact.folder, fix="give the ONNX artifact that it was compiled from")
        if made_for not in (None, "tensorrt"):
            message = f"was quantized for {made_for}"
            raise UsageError(
                "VD2013",
                message,
                file=artifact.folder,
                fix="run: vitdeploy quantize ARTIFACT --backend tensorrt --data DIR -o OUT",
            )

    def _again(self, artifact: Artifact) -> str:
        """What builds an engine again."""
        return f"build it on this machine: vitdeploy compile {artifact.folder / SOURCE} --backend {self.name} -o OUT"


class TensorRtRtx(TensorRt):
    """Compiles and runs engines of NVIDIA TensorRT for RTX, for GPUs of compute capability 7.5, 8.0, 8.6, 8.9 and 12.

    It compiles without a GPU. Its engines carry no device: each GPU finishes them when it loads them.
    """

    name = "tensorrt-rtx"


def _digest_spec(artifact: Artifact) -> str:
    """Of the model and its input contract: an engine is of both, and neither is inside it."""
    return hashlib.sha256(msgspec.json.encode(artifact.spec)).hexdigest()


def _digest(onnx: Path) -> str:
    """SHA-256 over an ONNX file and the files beside it that hold its data, in hex."""
    digest = hashlib.sha256(files.sha256(onnx).encode())
    for name in sorted(read_graph(onnx).external):
        digest.update(f"\0{name}\0{files.sha256(files.inside(onnx.parent, name))}".encode())
    return digest.hexdigest()
