"""The README tells the truth: its commands run, its Python runs, its make targets, options and files exist."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.M | re.S)
LINES = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines() if line.strip()]
COMMANDS = [line for line in LINES if line.startswith("vitdeploy ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the repository's data in it, as a reader's shell would stand in."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("recipes", "calibration"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(command: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert {language for language, _ in BLOCKS} <= {"bash", "python", "toml", "text"}
    assert len(COMMANDS) >= 4
    assert [line for line in LINES if line not in COMMANDS] == ["make demo", "make test"]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make (\w+)", TEXT)) <= targets | {"and"}


def test_commands_run_in_order(place) -> None:
    """One test, because each command uses what the one before it wrote."""
    for line in COMMANDS:
        run([sys.executable, "-m", *shlex.split(line)], place)
    assert (place / "runs" / "readme" / "report.md").is_file()


@pytest.mark.parametrize("block", [block for language, block in BLOCKS if language == "python"])
def test_python_runs(block, place) -> None:
    assert run([sys.executable, "-c", block], place).stdout


def test_the_printed_table_and_the_accuracy_are_those_of_the_shipped_weights() -> None:
    record = json.loads((ROOT / "recipes" / "fashion_mnist_vit.json").read_text())
    assert f"{100 * record['test_top1']:.2f} % top-1" in TEXT
    table = TEXT.split("<!-- demo: ")[1].split("<!-- demo ends")[0]
    assert "onnxruntime" in table
    assert "openvino" in table
    assert "speedup" in table


def test_the_worked_example_of_a_mapping(place) -> None:
    """The two files as they stand in the README, on a network of torch's own layers with those names."""
    torch = pytest.importorskip("torch")
    layer = torch.nn.TransformerEncoderLayer(32, 4, 48, 0.0, "gelu", batch_first=True, norm_first=True)
    parts = {
        "to_patches": torch.nn.Conv2d(3, 32, 8, 8),
        "encoder": torch.nn.TransformerEncoder(layer, 2, torch.nn.LayerNorm(32), enable_nested_tensor=False),
        "classify": torch.nn.Linear(32, 6),
        "decoder": torch.nn.Linear(32, 192),
    }
    state = torch.nn.ModuleDict(parts).state_dict() | {"cls": torch.randn(32), "pos": torch.randn(17, 32)}
    torch.save(state, place / "checkpoint.pth")
    spec, rules = (block for language, block in BLOCKS if language == "toml")
    (place / "my_vit.toml").write_text(spec)
    (place / "mapping.toml").write_text(rules)
    command = next(line for line in re.findall(r"`(vitdeploy export .+?)`", TEXT) if "mapping.toml" in line)
    run([sys.executable, "-m", *shlex.split(command.replace("OUT", "mapped"))], place)
    assert (place / "mapped" / "model.onnx").is_file()


def test_the_table_of_sources_is_the_tests_own() -> None:
    done = run([sys.executable, str(ROOT / "tests" / "what_loads.py")], ROOT)
    assert done.stdout in TEXT


def test_files_that_are_named_exist() -> None:
    for name in re.findall(r"`((?:recipes|calibration|vitdeploy|tests)/[\w./-]+)`", TEXT):
        assert (ROOT / name).exists(), name
