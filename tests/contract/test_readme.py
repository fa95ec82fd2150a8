"""The pages tell the truth: their commands and Python run. What they name is checked in `test_pages`."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.contract.pages import BLOCKS, COMMANDS, PAGES, ROOT
from tests.torchvision_shim import declare

CLASSES = ("daisy", "poppy", "rose", "tulip")
SLOW = {"recipes/README.md": [pytest.mark.slow]}  # the whole demo
OTHERS = [pytest.param(page, marks=SLOW.get(page, ())) for page in PAGES if page != "README.md" and COMMANDS[page]]


def run(command: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done


def follow(line: str, place: Path) -> None:
    """A command of a page. It measures briefly: nobody reads the figures here."""
    brief = ["--rounds", "2", "--seconds", "0.05"] if line.startswith("vitdeploy bench ") else []
    run([sys.executable, "-m", *shlex.split(line), *brief], place)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder as a reader's shell would stand in, with `my-vit/` and `photos/`, where the top page's commands were run."""
    transformers = pytest.importorskip("transformers")
    declare()
    folder = tmp_path_factory.mktemp("readme")
    (folder / "calibration").symlink_to(ROOT / "calibration")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    demo = folder / "recipes" / "fashion_mnist.toml"
    demo.write_text(demo.read_text().replace("[bench]", "[bench]\nrounds = 2\nseconds = 0.05"))
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    labels = dict(enumerate(CLASSES))
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, id2label=labels, num_labels=len(labels))
    transformers.ViTForImageClassification(config).save_pretrained(folder / "my-vit")
    prepare = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "do_resize": True}
    prepare |= {"do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    (folder / "my-vit" / "preprocessor_config.json").write_text(json.dumps(prepare))
    random = np.random.default_rng(0)
    for label in CLASSES:
        (folder / "photos" / label).mkdir(parents=True)
        for index in range(12):
            pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / label / f"{index}.png")
    for name in ("cat.jpg", "dog.jpg"):
        Image.fromarray(random.integers(0, 256, (48, 64, 3), np.uint8)).save(folder / name)
    for line in COMMANDS["README.md"]:
        follow(line, folder)
    return folder


@pytest.mark.slow
def test_the_five_lines_give_a_measured_model(place) -> None:
    record = json.loads((place / "vit-int8" / "artifact.json").read_text())
    assert record["precision"] == "int8"
    assert record["proof"]["verdict"].startswith("INT8: ")


@pytest.mark.slow
@pytest.mark.parametrize("page", OTHERS)
def test_commands_run_in_order(page, place) -> None:
    """One test a page, because each command may use what the one before it wrote."""
    for line in COMMANDS[page]:
        follow(line, place)


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for _, language, block in BLOCKS if language == "python"])
def test_python_runs(block, place) -> None:
    assert run([sys.executable, "-c", block], place).stdout


@pytest.mark.slow
def test_the_worked_example_of_a_mapping(place) -> None:
    """The two files as they stand on the page, on a network of torch's own layers with those names."""
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
    page = "vitdeploy/checkpoints/README.md"
    spec, rules, *_ = (block for other, language, block in BLOCKS if (other, language) == (page, "toml"))
    (place / "my_vit.toml").write_text(spec)
    (place / "mapping.toml").write_text(rules)
    command = next(line for line in re.findall(r"`(vitdeploy export .+?)`", PAGES[page]) if "mapping.toml" in line)
    run([sys.executable, "-m", *shlex.split(command.replace("OUT", "mapped"))], place)
    assert (place / "mapped" / "model.onnx").is_file()
