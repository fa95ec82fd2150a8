"""What of a model's input was read, what was said, and what was assumed: for every kind of source."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from tests.checkpoints.huggingface_folders import checkpoint, plain, transformers
from vitdeploy.checkpoints.huggingface import SOURCE
from vitdeploy.checkpoints.loader import load
from vitdeploy.data import images
from vitdeploy.errors import UsageError
from vitdeploy.models.vit import build
from vitdeploy.recipe import ExportConfig, ModelConfig
from vitdeploy.record import Origin
from vitdeploy.spec import InputContract, ModelSpec
from vitdeploy.verbs.exporter import export

HALF, IMAGENET = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406)
NAME = "vit_tiny_patch16_224"
PROCESSORS = {"clip": "CLIP", "siglip": "Siglip", "dinov2": "Bit", "vit": "ViT", "beit": "Beit"}


def timm(folder: Path, side: int = 224, **config: Any) -> Path:
    """A checkpoint by timm's names of one block, for images of any side; with a config.json where something is said."""
    spec = ModelSpec(name="t", input=InputContract(height=side, width=side), width=192, depth=1, heads=3, classes=4)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in build(spec).state_dict().items()}, folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps({"architecture": NAME, **config}))
        return folder
    return folder / "model.safetensors"


def assume(model: ModelConfig, size: tuple[int, int] | None = None) -> tuple[InputContract, Origin]:
    original = load(model, size)
    return original.spec.input, msgspec.convert(original.origin, Origin)


def test_what_a_name_alone_says_is_assumed(tmp_path: Path) -> None:
    contract, origin = assume(ModelConfig(source=NAME, weights=str(timm(tmp_path))))
    assert (contract.mean, contract.resize_to, contract.alpha, contract.exif) == (HALF, 248, "drop", "ignore")
    assert origin.assumption == (
        "mean 0.5, std 0.5, resize shortest to 248, interpolation bicubic, from what timm does for vit_tiny_patch16_224"
    )


def test_what_the_checkpoint_says_is_read(tmp_path: Path) -> None:
    contract, origin = assume(ModelConfig(source=str(timm(tmp_path, pretrained_cfg={"mean": IMAGENET, "crop_pct": 1.0}))))
    assert (contract.mean, contract.std, contract.shorter) == (IMAGENET, HALF, 224)
    assert set(origin.assumed) == {"std", "interpolation"}


def test_what_the_user_says_is_not_assumed(tmp_path: Path) -> None:
    model = ModelConfig(source=NAME, weights=str(timm(tmp_path)), mean=IMAGENET, std=(0.2,), crop=1, labels=("a", "b", "c", "d"))
    original = load(model)
    assert (original.spec.input.mean, original.spec.input.std) == (IMAGENET, (0.2,) * 3)
    assert original.spec.input.shorter == 224 and original.spec.labels == ("a", "b", "c", "d")
    assert msgspec.convert(original.origin, Origin).assumed == {"interpolation": "bicubic"}
    with pytest.raises(UsageError, match="2 labels for 4 classes"):
        load(msgspec.structs.replace(model, labels=("a", "b")))


def test_small_images_are_whole(tmp_path: Path) -> None:
    """Nothing is known of a margin around 64 pixels: those who train on small images train on all of them."""
    contract, origin = assume(ModelConfig(source=NAME, weights=str(timm(tmp_path, 64))))
    assert (contract.height, contract.shorter) == (64, 64)
    assert origin.assumed["resize"] == "shortest to 64"
    contract, _ = assume(ModelConfig(source=str(timm(tmp_path / "said", 64, crop_pct=0.8))))
    assert contract.resize_to == 80, "the checkpoint says so itself"
    larger, _ = assume(ModelConfig(source=NAME, weights=str(timm(tmp_path / "larger", 256))))
    assert larger.resize_to == 284, "timm's rule: floor(256 / 0.9)"
    resized, _ = assume(ModelConfig(source=NAME, weights=str(timm(tmp_path / "resized"))), (64, 64))
    assert resized.shorter == 64


def test_a_contract_file_for_every_source(tmp_path: Path) -> None:
    file = tmp_path / "input.toml"
    file.write_text('mean = [0.1, 0.2, 0.3]\nresize = "stretch"\nexif = "apply"\nresize_to = 224\n')
    contract, origin = assume(ModelConfig(source=NAME, weights=str(timm(tmp_path)), contract=str(file), std=(1.0,)))
    assert (contract.mean, contract.std, contract.resize) == ((0.1, 0.2, 0.3), (1.0,) * 3, "stretch")
    assert (contract.exif, contract.alpha, contract.height) == ("apply", "drop", 224), "what the file leaves out stays"
    assert origin.assumed == {"interpolation": "bicubic"}
    file.write_text("height = 64\nwidth = 96\n")
    contract, _ = assume(ModelConfig(source=NAME, weights=str(timm(tmp_path)), contract=str(file)))
    assert (contract.height, contract.width, contract.mean, contract.shorter) == (64, 96, HALF, 96)
    file.write_text("channels = 1\nmean = [0.5]\nstd = [0.5]\n")
    with pytest.raises(UsageError, match="has 1 channels, the model takes 3") as caught:
        load(ModelConfig(source=NAME, weights=str(timm(tmp_path)), contract=str(file)))
    assert caught.value.file == str(file)


def test_a_spec_file_tells_what_it_leaves_out(tmp_path: Path) -> None:
    spec = tmp_path / "own.toml"
    spec.write_text(f'name = "own"\nwidth = 192\ndepth = 1\nheads = 3\nclasses = 4\ninput = {{ mean = {list(HALF)} }}\n')
    weights = str(timm(tmp_path))
    _, origin = assume(ModelConfig(source=str(spec), weights=weights))
    assert origin.assumed == {
        "std": "0.229, 0.224, 0.225",
        "resize": "shortest to 224",
        "interpolation": "bicubic",
    }
    assert origin.assumed_from == "the defaults of a spec (ImageNet)"
    assert assume(ModelConfig(source=str(spec)))[1].assumed == {}, "random weights were never trained on anything"


def test_a_mapping_tells_what_its_spec_leaves_out(tmp_path: Path) -> None:
    weights = str(timm(tmp_path))
    text = "[rename]\n\"(.*)\" = '\\1'\n"
    spec = 'name = "own"\nwidth = 192\ndepth = 1\nheads = 3\nclasses = 4\n'
    (tmp_path / "own.toml").write_text(spec + 'input = { interpolation = "bilinear" }\n')
    (tmp_path / "a.toml").write_text('spec = "own.toml"\n' + text)
    (tmp_path / "b.toml").write_text("[spec]\n" + spec + text)
    _, named = assume(ModelConfig(source=str(tmp_path / "a.toml"), weights=weights))
    assert set(named.assumed) == {"mean", "std", "resize"}
    _, inline = assume(ModelConfig(source=str(tmp_path / "b.toml"), weights=weights))
    assert set(inline.assumed) == {"mean", "std", "resize", "interpolation"}


def test_an_artifact_hands_on_what_it_assumed(tmp_path: Path) -> None:
    first = export(ModelConfig(source=NAME, weights=str(timm(tmp_path, 32))), ExportConfig(prove_batches=(1,)), tmp_path / "a")
    assert first.record.origin.assumed["mean"] == "0.5"
    _, again = assume(ModelConfig(source=str(tmp_path / "a"), mean=IMAGENET))
    assert set(again.assumed) == {"std", "resize", "interpolation"} and "timm" in again.assumed_from


MODULE = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
"""


def test_a_module_by_options_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_module_of_input.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = ModelConfig(source="own_module_of_input:make", module=True, mean=(0.5,), std=(0.25,), labels=("a", "b", "c", "d"))
    original = load(model, (16, 16))
    assert (original.spec.input.mean, original.spec.input.height) == (HALF, 16)
    assert original.spec.labels == ("a", "b", "c", "d")
    assert set(msgspec.convert(original.origin, Origin).assumed) == {"resize", "interpolation"}
    with pytest.raises(UsageError, match="says nothing of how images are prepared") as caught:
        load(msgspec.structs.replace(model, std=None), (16, 16))
    assert "--image-size, --mean and --std" in caught.value.fix


def test_a_contracts_file_may_say_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_module_of_task.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    said = 'mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\ntask = "regression"\n'
    (tmp_path / "small.toml").write_text(f"height = 16\nwidth = 16\n{said}")
    model = ModelConfig(source="own_module_of_task:make", module=True, contract=str(tmp_path / "small.toml"))
    assert load(model).spec.task == "regression"
    assert load(msgspec.structs.replace(model, task="multi_label")).spec.task == "multi_label"  # typed, it counts
    (tmp_path / "said.toml").write_text(said)
    checkpoint = ModelConfig(source=NAME, weights=str(timm(tmp_path, 32)), contract=str(tmp_path / "said.toml"))
    assert load(checkpoint).spec.task == "regression"
    assert load(msgspec.structs.replace(checkpoint, contract=None)).spec.task == "single_label"


def test_a_hugging_face_folder_with_and_without_a_preprocessor() -> None:
    read = checkpoint(*plain("clip"), image_mean=[0.1] * 3)
    assert set(SOURCE.read_fields(read)) == {"mean", "std", "resize", "interpolation"}
    assert SOURCE.read_fields(read._replace(preprocessor={})) == ()


@pytest.mark.parametrize(
    ("kind", "said", "alpha"),
    [
        ("clip", {}, "white"),
        ("siglip", {}, "white"),
        ("dinov2", {}, "white"),
        ("vit", {}, "drop"),
        ("beit", {}, "drop"),
        ("clip", {"do_convert_rgb": False}, "drop"),
        ("vit", {"do_convert_rgb": True}, "white"),
    ],
    ids=str,
)
def test_transparency_and_orientation_as_transformers(kind: str, said: dict[str, Any], alpha: str, tmp_path: Path) -> None:
    """An image in memory is laid on white where the processor converts it; a file is turned upright by what opens it."""
    library = transformers()
    contract = SOURCE.spec(checkpoint(*plain(kind), **said), None).input
    assert (contract.exif, contract.alpha) == ("apply", alpha)
    name = f"{PROCESSORS[kind]}ImageProcessorPil"
    clear = Image.new("RGBA", (224, 224), (200, 100, 50, 0))
    turn = Image.Exif()
    turn[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "lying.png", exif=turn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of theirs
        processor = getattr(library, name)(**said)
        given = clear if alpha == "white" else clear.convert("RGB")  # what a processor that does not convert must be given
        theirs = processor(given, do_normalize=False, return_tensors="np")["pixel_values"][0]
        turned = library.image_utils.load_image(str(tmp_path / "lying.png")).size
    clear.save(tmp_path / "clear.png")
    ours = images.load(tmp_path / "clear.png", contract)
    centre = theirs[:, theirs.shape[1] // 2, theirs.shape[2] // 2]
    assert np.rint(255 * centre).tolist() == ours[ours.shape[0] // 2, ours.shape[1] // 2].tolist()
    assert turned == (10, 20)
