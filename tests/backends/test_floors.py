"""The oldest engines that pyproject allows, in a virtual environment of their own: they run and compile what is written today.

On Python 3.10, the oldest that it allows, where this machine has one; else on the Python that runs the tests.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from tests.pythons import find_python
from vitdeploy.data import synthetic
from vitdeploy.onnxfile.reader import read
from vitdeploy.recipe import QuantizeConfig
from vitdeploy.verbs.packer import PackConfig, pack
from vitdeploy.verbs.predictor import PredictConfig, predict
from vitdeploy.verbs.quantizer import quantize
from vitdeploy.verbs.signer import keygen

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

REPOSITORY = Path(__file__).parents[2]
ENGINES = ("onnxruntime", "openvino")
FORMS = {
    "onnxruntime": ("int8", "fp16", "int8-dynamic", "int8-weight-only"),
    "openvino": ("int8", "fp16", "bf16", "int8-dynamic", "int8-weight-only"),
    "portable": ("int8", "fp16"),
}
TOO_OLD = {("onnxruntime", "int8-weight-only"): "this onnxruntime is too old to run a dequantized weight as MatMulNBits"}
"""Forms that the lowest version runs in float: `compile` says so."""
OLDEST = find_python("3.10")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        OLDEST is None and sys.version_info >= (3, 12), reason="the lowest versions have wheels for Python 3.10 and 3.11 only"
    ),
]


def read_floors() -> list[str]:
    """The lowest version of every package that a box with both engines needs, as pip takes it."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = [line for line in project["dependencies"] if ";" not in line or OLDEST or sys.version_info < (3, 11)]
    lines += [line for engine in ENGINES for line in project["optional-dependencies"][engine]]
    return [re.sub(">=([0-9.]+)", r"==\1.*", line.partition(";")[0].strip()) for line in lines]


@pytest.fixture(scope="module")
def old(shelf) -> Path:
    """The Python that has the lowest versions; one for all workers of this run."""
    place = shelf / "floors"
    place.mkdir(parents=True, exist_ok=True)
    python = place / "venv" / "bin" / "python"
    with FileLock(place / "lock"):
        if not (place / "done").exists():
            subprocess.run([OLDEST or sys.executable, "-m", "venv", place / "venv"], check=True)
            install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *read_floors()]
            done = subprocess.run(install, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            (place / "done").touch()
    return python


@pytest.fixture(scope="module")
def forms(tiny_artifact, tmp_path_factory) -> dict[tuple[str, str], Path]:
    """Target and precision to an artifact; the export itself is for any engine."""
    made = {("any", "fp32"): tiny_artifact.folder}
    for target, precisions in FORMS.items():
        for precision in precisions:
            config = QuantizeConfig(precision=precision, target=target, calibration="random", limit=8, verify=False)
            folder = tmp_path_factory.mktemp("forms") / f"{target}-{precision}"
            made[target, precision] = quantize(tiny_artifact, config, folder).folder
    return made


def vitdeploy(python: Path, *arguments: object, refuses: str = "") -> str:
    """Run a command with the lowest versions; what it prints, or nothing where it must refuse with those words."""
    command = [str(python), "-m", "vitdeploy", *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True)
    assert (done.returncode != 0) == bool(refuses), f"{' '.join(command[2:])}: {done.stderr}"
    assert refuses in done.stderr
    return done.stdout


def test_all_forms_say_the_ir_of_their_operator_set(forms) -> None:
    assert {form: read(folder / "model.onnx").version for form, folder in forms.items()} == dict.fromkeys(forms, 9)


def test_the_versions_are_the_lowest(old) -> None:
    floors = dict(line.removesuffix(".*").split("==") for line in read_floors())
    shown = json.loads(subprocess.run([old, "-m", "pip", "list", "--format=json"], capture_output=True, check=True).stdout)
    installed = {each["name"]: each["version"] for each in shown}
    assert {name: installed[name] for name in floors if not installed[name].startswith(floors[name])} == {}


@pytest.mark.parametrize("engine", ENGINES)
def test_they_run_and_compile_what_is_written_today(engine: str, old, forms, tiny_artifact, tmp_path) -> None:
    image = tmp_path / "image.png"
    Image.fromarray(synthetic.pixels(1, tiny_artifact.spec.input)[0]).save(image)
    expected = {each.index: each.probability for each in predict(tiny_artifact, [image], PredictConfig(top=12))[0].classes}
    for (target, precision), folder in forms.items():
        if target not in ("any", "portable", engine):
            continue
        made = tmp_path / f"{target}-{precision}"
        refusal = TOO_OLD.get((target, precision), "")
        vitdeploy(old, "compile", folder, "--backend", engine, "-o", made, refuses=refusal)
        for artifact in (folder,) if refusal else (folder, made):
            shown = json.loads(vitdeploy(old, "predict", artifact, image, "--backend", engine, "--top", 12, "--json"))
            told = {each["index"]: each["probability"] for each in shown["predictions"][0]["classes"]}
            assert told == pytest.approx(expected, abs=0.1), f"{artifact} in {engine}"


@pytest.fixture(scope="module")
def bundle(tiny_artifact, tmp_path_factory) -> Path:
    """A signed bundle of the export, and one of an INT8 form for all engines; what is named is the latter."""
    folder = tmp_path_factory.mktemp("bundle")
    images = folder / "images"
    images.mkdir()
    for number, pixels in enumerate(synthetic.pixels(16, tiny_artifact.spec.input)):
        Image.fromarray(pixels).save(images / f"{number}.png")
    int8 = quantize(tiny_artifact, QuantizeConfig(target="portable", calibration=str(images), verify=False), folder / "int8")
    keygen(folder / "key")
    pack([tiny_artifact], PackConfig(sign=str(folder / "key")), folder / "fp32.vdb")
    pack([int8, tiny_artifact], PackConfig(sign=str(folder / "key")), folder / "tiny.vdb")
    return folder / "tiny.vdb"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bundle_proves_itself_on_a_box_without_torch_and_onnx(engine: str, old, bundle, tmp_path) -> None:
    missing = "import importlib.util as u; print([name for name in ('torch', 'onnx', 'cryptography') if u.find_spec(name)])"
    assert subprocess.run([old, "-c", missing], capture_output=True, check=True, text=True).stdout == "[]\n"
    key = bundle.with_name("key.pub")
    shown = json.loads(vitdeploy(old, "verify", bundle, "--key", key, "--run", "--backend", engine, "--json"))
    assert [(check["name"], check["outcome"]) for check in shown["checks"]] == [("images", "pass"), ("outputs", "pass")]
    assert (shown["model"], shown["engine"]) == ("models/0-int8", engine)
    vitdeploy(old, "verify", bundle.with_name("fp32.vdb"), "--key", key, "--run", "--backend", engine)
    image = bundle.parent / "images" / "0.png"
    assert json.loads(vitdeploy(old, "predict", bundle, image, "--backend", engine, "--json"))["predictions"][0]["classes"]
    assert json.loads(vitdeploy(old, "bench", bundle, "--backend", engine, "--rounds", 1, "--seconds", 0.01, "--json"))["rows"]
    vitdeploy(old, "compile", bundle, "--backend", engine, "-o", tmp_path / "engine")
    keygen(tmp_path / "other")
    vitdeploy(old, "verify", bundle, "--key", tmp_path / "other.pub", refuses="was not made with this key")
