"""API contract: everything of NVIDIA's module that our sources touch exists in the real bindings of every version we name.

What is touched is read from our sources. The bindings are NVIDIA's own, fetched from the package index; the libraries that they
load are stand-ins of our own that do nothing, so enumerations, classes and methods are real, and nothing can be built or run.
"""

import ast
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.tensorrt import wheels
from vitdeploy.backends.tensorrt import backend, buffers, builder

FOLDER = Path(backend.__file__).parent
VERSIONS = {
    "10.3.0": "tensorrt-cu12-bindings==10.3.0",  # JetPack 6
    "10.7.0": "tensorrt-cu12-bindings==10.7.0",
    "10.13.3.9": "tensorrt-cu12-bindings==10.13.3.9",  # JetPack 7.0
    "10.16.1.11": "tensorrt-cu12-bindings==10.16.1.11",  # JetPack 7.2
    "11.4.0.106": "tensorrt-cu12-bindings==11.4.0.106",
}

ENDS = ("10.3.0", "11.4.0.106")
"""The oldest and the newest."""

MODULE = ("trt", "module", "self._module", "self.trt")
"""What our sources call the module itself."""
GIVEN = {
    "runner.py": {"session.context": "IExecutionContext"},
    "inspection.py": {"engine": "ICudaEngine"},
    "buffers.py": {"engine": "ICudaEngine"},
    "builder.py": {"_parser_error:error": "ParserError"},
}
"""Objects that come as arguments (of one function: ``function:argument``), or in other objects, by file; all others follow from
what makes them."""
MADE = {
    "Builder": "Builder", "OnnxParser": "OnnxParser", "Runtime": "Runtime", "create_network": "INetworkDefinition",
    "create_builder_config": "IBuilderConfig", "create_timing_cache": "ITimingCache",
    "create_optimization_profile": "IOptimizationProfile", "deserialize_cuda_engine": "ICudaEngine",
    "create_execution_context": "IExecutionContext", "create_engine_inspector": "EngineInspector",
    "get_error": "ParserError", "get_input": "ITensor", "get_output": "ITensor",
}  # fmt: skip
"""Calls to the class of what they give."""
PLAIN = {"build_serialized_network", "get_engine_information", "get_tensor_name", "get_tensor_dtype", "get_tensor_shape",
         "set_input_shape", "get_tensor_profile_shape", "node_operator", "node_name", "code", "desc"}  # fmt: skip
"""Calls that give nothing whose attributes are used beyond enumerations' ``name``, numbers and buffers."""
ONLY_RTX = {"ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"}
"""Reached only for ``tensorrt-rtx``."""
GUARDED = {
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED",  # hasattr
    "MemoryPoolType.TACTIC_DRAM",  # hasattr
    "IExecutionContext.is_stream_capturable",  # getattr with a default; TensorRT-RTX only
}
BY_NAME = {"BuilderFlag": ("VERSION_COMPATIBLE", "REFIT", "TF32")}
"""Members that are looked up by a name in a variable."""
REMOVED = {
    "EXPLICIT_BATCH", "FP16", "BF16", "INT8", "FP8", "int8_calibrator", "IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator",
    "set_calibration_profile", "dynamic_range", "set_dynamic_range", "platform_has_fast_fp16", "platform_has_fast_int8",
    "supports_model", "device_memory_size", "create_execution_context_without_device_memory", "max_workspace_size",
    "build_engine", "execute_async_v2", "num_bindings", "get_binding_name", "OBEY_PRECISION_CONSTRAINTS",
}  # fmt: skip
"""Gone in 11, or long before: never written as an attribute."""


class Uses(ast.NodeVisitor):
    """The dotted names of the module's API that one source file touches."""

    def __init__(self, name: str) -> None:
        self.found: dict[str, int] = {}
        self.guarded: set[str] = set()
        given = GIVEN.get(name, {})
        self.objects: dict[str, str] = {text: kind for text, kind in given.items() if ":" not in text}
        self.arguments = {text: kind for text, kind in given.items() if ":" in text}
        self.unknown: list[str] = []
        tree = ast.parse((FOLDER / name).read_text())
        for _ in range(4):  # what an object is may be said below its first use
            self.visit(tree)

    def visit_FunctionDef(self, node):
        outer = dict(self.objects)
        own = f"{node.name}:"
        self.objects |= {text.removeprefix(own): kind for text, kind in self.arguments.items() if text.startswith(own)}
        for argument in node.args.args:
            if argument.annotation is not None and ast.unparse(argument.annotation) == "Any":
                self._require_known(node, argument.arg)
        self.generic_visit(node)
        attributes = {text: kind for text, kind in self.objects.items() if text.startswith("self.")}
        self.objects = outer | attributes  # other names mean something else in the next function

    def _require_known(self, node, argument):
        """An argument of any type whose attributes are used must be declared."""
        used = (part for part in ast.walk(node) if isinstance(part, ast.Attribute) and ast.unparse(part.value) == argument)
        if argument not in (*MODULE, "self") and argument not in self.objects and any(used):
            self.unknown.append(f"argument {argument} of {node.name}")

    def visit_Assign(self, node):
        target, value = node.targets[0], node.value
        both = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
        for left, right in zip(target.elts, value.elts, strict=True) if both else [(target, value)]:
            self._assign(left, right)
        self.generic_visit(node)

    def visit_AnnAssign(self, node):
        if node.value is not None:
            self._assign(node.target, node.value)
        self.generic_visit(node)

    def generic_visit(self, node):
        for each in getattr(node, "generators", ()):  # of a comprehension: before what is made of them
            self._assign(each.target, each.iter)
        super().generic_visit(node)

    def visit_Attribute(self, node):
        name = self._name(node)
        if name:
            self.found.setdefault(name, node.lineno)
        self.generic_visit(node)

    def visit_Call(self, node):
        if isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr") and isinstance(node.args[1], ast.Constant):
            owner = self._name(node.args[0])
            if owner is not None and not (node.func.id == "getattr" and len(node.args) < 3):
                self.guarded.add(f"{owner}.{node.args[1].value}".lstrip("."))
        self.generic_visit(node)

    def _name(self, node) -> str | None:
        """``""`` for the module, a dotted name for what is reached from it, None for everything else."""
        text = ast.unparse(node)
        if text in MODULE:
            return ""
        if text in self.objects:
            return self.objects[text]
        if isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
            owner = self._name(node.value)
            return None if owner is None else f"{owner}.{node.attr}".lstrip(".")
        return None

    def _assign(self, target, value) -> None:
        """What a name stands for from now on: an enumeration, or what a call on an object of the module has made."""
        text = ast.unparse(target)
        if not isinstance(target, ast.Name | ast.Attribute) or text in MODULE:
            return
        plain = self._name(value)
        if plain and "." not in plain:
            self.objects[text] = plain
        calls = [part for part in ast.walk(value) if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute)]
        direct = isinstance(value, ast.Call) and self._name(value.func)
        for call in calls if not isinstance(value, ast.Call) or direct else []:
            if self._name(call.func) is None:
                continue
            made = MADE.get(call.func.attr)
            if made and (call is value or isinstance(value, ast.List | ast.ListComp | ast.Tuple | ast.GeneratorExp)):
                self.objects[text] = made
            elif made is None and call is value and call.func.attr not in PLAIN:
                self.unknown.append(f"{text} = {ast.unparse(call)}")


@functools.cache
def uses() -> dict[str, Uses]:
    return {path.name: Uses(path.name) for path in sorted(FOLDER.glob("*.py"))}


def touched() -> set[str]:
    names = {name for each in uses().values() for name in each.found}
    names |= {f"{owner}.{member}" for owner, members in BY_NAME.items() for member in members}
    return names


CHECK = r"""
import functools, importlib, json, os, subprocess, sys, ctypes
request = json.loads(sys.stdin.read())
sys.path[:0] = request["path"]
for library in request["libraries"]:
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
module = importlib.import_module(request["module"])
from vitdeploy.backends.tensorrt import library
def there(name):
    try:
        functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        return False
    return True
log = library.Log(module)
with log.listening() as said:
    for severity in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
        log.native.log(getattr(module.ILogger.Severity, severity), severity)
print(json.dumps({
    "version": module.__version__,
    "numbers": library.version(module),
    "missing": [name for name in request["names"] if not there(name)],
    "types": sorted(module.DataType.__members__),
    "type_name": module.DataType.FLOAT.name,
    "flags": sorted(module.BuilderFlag.__members__),
    "creation": sorted(module.NetworkDefinitionCreationFlag.__members__),
    "said": said,
    "modes_compare": module.TensorIOMode.INPUT == module.TensorIOMode.INPUT != module.TensorIOMode.OUTPUT,
}))
"""
STUBS = r"""
#define NOTHING(name) void *name(void) { return 0; }
NOTHING(createInferBuilder_INTERNAL) NOTHING(createInferRefitter_INTERNAL) NOTHING(createInferRuntime_INTERNAL)
NOTHING(createNvOnnxParser_INTERNAL) NOTHING(createNvOnnxParserRefitter_INTERNAL) NOTHING(getNvOnnxParserVersion)
NOTHING(getBuilderPluginRegistry) NOTHING(getPluginRegistry) NOTHING(initLibNvInferPlugins)
"""


def ask(module: str, names: set[str], path: list[Path], libraries: list[Path]) -> dict:
    """What a module says of itself, in a process of its own."""
    request = {
        "module": module, "names": sorted(names), "path": [str(each) for each in path],
        "libraries": [str(each) for each in libraries],
    }  # fmt: skip
    command = [sys.executable, "-c", CHECK]
    root = FOLDER.parents[2]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, cwd=root, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module", params=[pytest.param(each, marks=[pytest.mark.slow] * (each not in ENDS)) for each in VERSIONS])
def bindings(request, tmp_path_factory):
    """The answer of one version's real bindings."""
    folder = tmp_path_factory.mktemp("stubs")
    (folder / "stub.c").write_text(STUBS)
    libraries, compiler = [], wheels.compiler()
    path = wheels.unpacked(VERSIONS[request.param])
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        libraries.append(folder / f"lib{name}.so.{request.param.partition('.')[0]}")
        soname = f"-Wl,-soname,{libraries[-1].name}"
        subprocess.run([compiler, "-shared", "-fPIC", soname, "-o", libraries[-1], folder / "stub.c"], check=True)
    return request.param, ask("tensorrt_bindings", touched() | GUARDED | ONLY_RTX, [path], libraries)


def test_the_reading_of_our_sources_sees_what_is_there():
    """Else the contract below would hold of nothing."""
    for name in (
        "Runtime", "ICudaEngine.get_tensor_profile_shape", "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_device_memory", "ExecutionContextAllocationStrategy.USER_MANAGED", "TensorIOMode.INPUT",
        "EngineInspector.get_engine_information", "LayerInformationFormat.JSON", "ICudaEngine.device_memory_size_v2",
        "Builder.build_serialized_network", "IBuilderConfig.set_memory_pool_limit", "MemoryPoolType.WORKSPACE",
        "OnnxParser.parse_from_file", "ParserError.desc", "ITensor.dtype", "INetworkDefinition.num_inputs",
        "IOptimizationProfile.set_shape", "IBuilderConfig.builder_optimization_level", "IBuilderConfig.set_flag",
        "IBuilderConfig.profiling_verbosity", "ITimingCache.serialize", "ProfilingVerbosity.DETAILED", "ILogger",
    ):  # fmt: skip
        assert name in touched(), name
    assert len(touched()) > 50


def test_every_object_has_a_known_class():
    assert [text for each in uses().values() for text in each.unknown] == []


def test_what_is_declared_is_in_use():
    everything = uses()
    seen = set().union(*(each.found for each in everything.values()), *(each.guarded for each in everything.values()))
    assert seen >= GUARDED | ONLY_RTX
    for file, objects in GIVEN.items():
        for text, kind in objects.items():
            assert any(name.startswith(f"{kind}.") for name in everything[file].found), (file, text)


def test_nothing_is_guarded_in_silence():
    guarded_names = set().union(*(each.guarded for each in uses().values()))
    assert {name for name in guarded_names if not name.startswith("__")} <= GUARDED


def test_what_was_removed_is_never_touched():
    assert not {name for name in touched() if REMOVED & set(name.split("."))}
    assert builder.WEAK_FLAGS.keys() == {"float16", "bfloat16", "int8", "float8e4m3fn"}  # the one way to such a flag, by name


def test_every_attribute_exists(bindings):
    _, answer = bindings
    assert set(answer["missing"]) <= GUARDED | ONLY_RTX


def test_strong_typing_exists_everywhere(bindings):
    """Its guard is for what comes after 11."""
    assert "STRONGLY_TYPED" in bindings[1]["creation"]
    assert "MemoryPoolType.TACTIC_DRAM" not in bindings[1]["missing"]


def test_weak_typing_is_of_version_10_alone(bindings):
    """`builder.require_supported` refuses it for 11."""
    version, answer = bindings
    there = set(builder.WEAK_FLAGS.values()) & set(answer["flags"])
    assert there == (set(builder.WEAK_FLAGS.values()) if version.startswith("10.") else set())


def test_types_have_the_names_that_we_look_for(bindings):
    _, answer = bindings
    assert set(buffers._MEMORY) <= set(answer["types"])
    assert set(builder.TYPES) <= set(answer["types"])
    assert answer["type_name"] == "FLOAT"
    assert answer["modes_compare"] is True


def test_the_version_is_read(bindings):
    version, answer = bindings
    assert answer["version"].startswith(version)
    assert answer["numbers"] == [int(part) for part in answer["version"].split(".")]


def test_the_log_hears_every_severity(bindings):
    assert bindings[1]["said"] == [["error", "INTERNAL_ERROR"], ["error", "ERROR"], ["warning", "WARNING"], ["info", "INFO"]]


def test_tensorrt_rtx_has_it_all():
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    answer = ask("tensorrt_rtx", touched() | GUARDED | ONLY_RTX, [], [])
    assert answer["missing"] == []
    assert set(buffers._MEMORY) <= set(answer["types"])
    assert not set(builder.WEAK_FLAGS.values()) & set(answer["flags"])
