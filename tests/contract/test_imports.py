"""What may be imported where, each checked in a fresh interpreter in which the forbidden packages do not exist."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

REPOSITORY = Path(__file__).parents[2]
RECIPES = REPOSITORY / "recipes"

HEAVY = ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "openvino", "safetensors", "tensorrt", "transformers", "timm")
LIGHT = (
    "vitdeploy",
    "vitdeploy.cli.commands",
    "vitdeploy.cli.shell",
    "vitdeploy.verbs.doctor",
    "vitdeploy.artifact",
    "vitdeploy.data.images",
    "vitdeploy.data",
    "vitdeploy.zoo.variants",
    "vitdeploy.zoo.cost",
    "vitdeploy.backends.table",
    "vitdeploy.backends.base",
    "vitdeploy.measure.statistics",
    "vitdeploy.measure.parity",
    "vitdeploy.measure.accuracy",
    "vitdeploy.measure.latency",
    "vitdeploy.verbs.validator",
    "vitdeploy.verbs.bencher",
    "vitdeploy.verbs.predictor",
    "vitdeploy.verbs.builder",
    "vitdeploy.recipe",
    "vitdeploy.report",
    "vitdeploy.render.console",
    "vitdeploy.jsonfile",
    "vitdeploy.render.markdown",
    "vitdeploy.render.progress",
    "vitdeploy.render.tables",
)


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("banned", "modules"),
    [
        pytest.param(HEAVY, LIGHT, id="without torch, onnx and engines"),
        pytest.param((*HEAVY, "numpy", "PIL", "rich", "typer", "msgspec"), ("vitdeploy", "vitdeploy.errors"), id="package"),
        pytest.param((*HEAVY, "numpy", "PIL", "rich", "msgspec"), ("vitdeploy.cli.commands",), id="command line"),
    ],
)
def test_imports_without(banned, modules):
    """A None in sys.modules makes an import fail, whether or not the package is installed."""
    imports = "\n".join(f"import {name}" for name in modules)
    run(f"import sys; sys.modules.update(dict.fromkeys({banned!r}))\n{imports}")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["export", "--help"], ["doctor", "--help"]])
def test_help_needs_only_typer(arguments):
    banned = (*HEAVY, "numpy", "PIL", "rich", "msgspec")
    run(
        f"import sys; sys.modules.update(dict.fromkeys({banned!r}))\n"
        f"from vitdeploy.cli.commands import main; assert main({arguments!r}) == 0"
    )


@pytest.mark.parametrize("command", ["export", "build"])
def test_a_missing_extra_is_one_line_with_the_pip_command(command, tmp_path):
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))\n"
        f"from vitdeploy.cli.commands import main\n"
        f"sys.exit(main([{command!r}, 'vit_tiny_patch16_224', '-o', {str(tmp_path / 'x')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert "VD4001" in done.stderr
    assert "pip install 'vitdeploy[export]'" in done.stderr


@pytest.mark.parametrize("arguments", [["models"], ["explain"]])
def test_looking_needs_no_engine(arguments):
    run(
        f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))\n"
        f"from vitdeploy.cli.commands import main; assert main({arguments!r}) == 0"
    )


def test_onnxruntime_does_not_phone_home(tiny_artifact, tmp_path):
    """It leaves the file of a session of its telemetry in the temporary folder; not so when vitdeploy was imported before it."""
    code = f"import vitdeploy, onnxruntime; onnxruntime.InferenceSession({str(tiny_artifact.model)!r})"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["checkpoint", "artifact", "onnx", "spec", "recipe", "contract"])
def test_inspect_needs_no_numpy(tmp_path, tiny_artifact, kind):
    """A third of its time would go by before it has looked at the file; torch, onnx and engines would take seconds."""
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "w.safetensors")
    (tmp_path / "contract.toml").write_text("height = 32\nwidth = 32\n")
    path = {
        "checkpoint": tmp_path / "w.safetensors",
        "artifact": tiny_artifact.folder,
        "onnx": tiny_artifact.model,
        "spec": RECIPES / "fashion_mnist_vit.toml",
        "recipe": RECIPES / "ci.toml",
        "contract": tmp_path / "contract.toml",
    }[kind]
    code = f"from vitdeploy.cli.commands import main; assert main(['inspect', {str(path)!r}]) == 0"
    run(f"import sys; sys.modules.update(dict.fromkeys({(*HEAVY, 'numpy', 'PIL')!r}))\n{code}")


@pytest.mark.slow
def test_the_oldest_python_has_what_is_used() -> None:
    """Of the standard library and of the language, by vermin's tables; `typing.Unpack` is for type checkers alone."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=")
    vermin = Path(sys.executable).parent / "vermin"
    command = [vermin, f"-t={oldest}-", "--no-tips", "--exclude", "typing.Unpack"]
    done = subprocess.run([*command, REPOSITORY / "vitdeploy"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert f"Minimum required versions: {oldest}" in done.stdout
