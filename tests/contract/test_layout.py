"""Tests stand where their subject stands: the tests of vitdeploy/ROOM/X.py are tests/ROOM/test_X.py."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OF_ALL = ("contract", "faults", "fuzz", "benchmarks")
"""Folders that are about the whole package."""
OF_SEVERAL = {
    "backends/test_contract.py": "what every backend promises",
    "backends/test_fake_engine.py": "an engine that is not shipped, through the whole line",
    "backends/test_floors.py": "the oldest engines that pyproject allows",
    "backends/test_kernels.py": "what the engines say about the kernels that ran",
    "backends/tensorrt/test_contract_bindings.py": "the bindings of several TensorRT versions",
    "backends/tensorrt/test_gpu.py": "what needs a GPU",
    "checkpoints/test_input.py": "what is read, said and assumed of the input, for every kind of source",
    "checkpoints/test_peers.py": "models and checkpoints against timm and transformers",
    "cli/test_program.py": "the program as a process: its streams, folders, limits and signals",
    "fleet/test_device.py": "the recipes for a box, and the page's ten commands",
    "fleet/test_dying.py": "kill -9 at every step that the agent takes",
    "fleet/test_openssh.py": "pushes through a real OpenSSH server",
    "graph/canonical/test_parts.py": "one foreign form a test, many rewrites",
    "graph/canonical/test_tolerances.py": "how near to the book a form must be, and 16 bits, in every rewrite",
    "graph/exact/test_block.py": "every exact rewrite of one small block",
    "graph/exact/test_cuts.py": "who may read a block that is cut down, or turned",
    "graph/half/test_limits.py": "where FP16 ends: ranges, constants and what is summed inside",
    "quant/test_tensorrt.py": "what quantize writes for TensorRT",
    "render/test_sinks.py": "markdown, JSON and console of the same report",
    "verbs/test_against.py": "what is compared with the user's own code, and when that is imported",
    "verbs/test_merging.py": "token merging through the line: export, quantize, validate",
    "verbs/test_places.py": "where artifacts may be written, for every verb that writes one",
}
"""Files that are about more than one module, each with what it is about."""
FILES = sorted(path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] not in OF_ALL and str(file) not in OF_SEVERAL], ids=str)
def test_a_file_of_tests_has_the_name_of_its_module(file: Path) -> None:
    module = ROOT / "vitdeploy" / file.with_name(file.name.removeprefix("test_"))
    assert module.is_file() or module.with_suffix("").is_dir(), f"move it, or say in {Path(__file__).name} what it is about"


def test_every_folder_of_tests_is_a_room() -> None:
    folders = {str(parent) for file in FILES for parent in file.parents if str(parent) != "."}
    rooms = {folder for folder in folders if folder.split("/")[0] not in OF_ALL}
    assert [room for room in sorted(rooms) if not (ROOT / "vitdeploy" / room).is_dir()] == []


def test_every_room_has_tests() -> None:
    rooms = [path.name for path in (ROOT / "vitdeploy").iterdir() if (path / "__init__.py").is_file()]
    assert [room for room in rooms if not list((ROOT / "tests" / room).rglob("test_*.py"))] == []


def test_exceptions_are_still_there() -> None:
    assert [name for name in OF_SEVERAL if not (ROOT / "tests" / name).is_file()] == []
