"""Google's ``.npz``: equal to timm, which reads the same file with its own loader; relatives that are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.checkpoints.test_peers import State, peer
from vitdeploy.checkpoints import jax, safetensors
from vitdeploy.checkpoints.conversion import convert
from vitdeploy.checkpoints.source import Checkpoint
from vitdeploy.errors import InputError
from vitdeploy.models import positions
from vitdeploy.spec import ModelSpec

D, HEADS, SIZE, HIDDEN, DEPTH, PATCH, SIDE, CLASSES = 32, 4, 8, 48, 2, 8, 32, 7
Arrays = dict[str, np.ndarray]


def arrays(*, new: bool = False, pool: str = "cls", prefix: str = "", head: bool = True, hidden: int = 0) -> Arrays:
    """A random checkpoint with the names of the paper's code, or big_vision's."""
    shapes: dict[str, tuple[int, ...]] = {"embedding/kernel": (PATCH, PATCH, 3, D), "embedding/bias": (D,)}
    if pool == "cls":
        shapes["cls"] = (1, 1, D)
    own = int(pool == "cls" and not new)
    table = "pos_embedding" if new else "Transformer/posembed_input/pos_embedding"
    shapes[table] = (1, (SIDE // PATCH) ** 2 + own, D)

    def attention(name: str) -> None:
        for part in ("query", "key", "value"):
            shapes[f"{name}/{part}/kernel"], shapes[f"{name}/{part}/bias"] = (D, HEADS, SIZE), (HEADS, SIZE)
        shapes[f"{name}/out/kernel"], shapes[f"{name}/out/bias"] = (HEADS, SIZE, D), (D,)

    def norm(name: str) -> None:
        shapes[f"{name}/scale"] = shapes[f"{name}/bias"] = (D,)

    def mlp(name: str) -> None:
        shapes[f"{name}/Dense_0/kernel"], shapes[f"{name}/Dense_0/bias"] = (D, HIDDEN), (HIDDEN,)
        shapes[f"{name}/Dense_1/kernel"], shapes[f"{name}/Dense_1/bias"] = (HIDDEN, D), (D,)

    for block in range(DEPTH):
        name = f"Transformer/encoderblock_{block}"
        norm(f"{name}/LayerNorm_0")
        attention(f"{name}/MultiHeadDotProductAttention_{0 if new else 1}")
        norm(f"{name}/LayerNorm_{1 if new else 2}")
        mlp(f"{name}/MlpBlock_{0 if new else 3}")
    norm("Transformer/encoder_norm")
    if pool == "map":
        shapes["MAPHead_0/probe"] = (1, 1, D)
        attention("MAPHead_0/MultiHeadDotProductAttention_0")
        norm("MAPHead_0/LayerNorm_0")
        mlp("MAPHead_0/MlpBlock_0")
    if hidden:
        shapes["pre_logits/kernel"], shapes["pre_logits/bias"] = (D, hidden), (hidden,)
    if head:
        shapes["head/kernel"], shapes["head/bias"] = (hidden or D, CLASSES), (CLASSES,)
    random = np.random.default_rng(0)
    return {prefix + name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


def checkpoint(given: Arrays, path: Path = Path("B_8.npz")) -> Checkpoint:
    return Checkpoint(path, {name: torch.from_numpy(array) for name, array in given.items()}, {}, {}, {}, ())


def loaded(given: Arrays, architecture: str | None = None) -> tuple[ModelSpec, State, dict[str, str]]:
    whole = checkpoint(given)
    assert jax.recognise(whole)
    model = jax.SOURCE.spec(whole, architecture)
    converted = convert(whole.state, jax.SOURCE.rules(whole, model))
    assert not converted.unknown
    return model, converted.state, converted.left_out


def theirs(given: Arrays, path: Path, *, name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    """timm's network with the file read by timm."""
    timm = peer("timm")
    np.savez(path, **given)
    sizes = {"embed_dim": D, "depth": DEPTH, "num_heads": HEADS, "patch_size": PATCH, "mlp_ratio": HIDDEN / D}
    options = {"img_size": SIDE, "num_classes": CLASSES, "act_layer": "gelu_tanh", **sizes, **options}
    built = timm.create_model(name, **options).eval()
    built.load_pretrained(str(path))
    return built


def images(side: int = SIDE) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.std()


@pytest.fixture(autouse=True)
def one_seed() -> Any:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_the_papers_equals_timm(prefix: str, tmp_path: Path) -> None:
    given = arrays(prefix=prefix)
    model, state, left_out = loaded(given)
    assert not left_out
    assert model.name == "B_8"
    assert (model.position_prefix, model.head_width, model.mlp_width, model.classes) == (True, None, HIDDEN, CLASSES)
    assert (model.input.mean, model.input.std) == ((0.5,) * 3, (0.5,) * 3)
    close(safetensors.assemble(model, state)(images()), theirs(given, tmp_path / "a.npz")(images()))


def test_the_exact_gelu_of_timm_differs_little(tmp_path: Path) -> None:
    given = arrays()
    model, state, _ = loaded(given)
    outputs, expected = (
        safetensors.assemble(model, state)(images()),
        theirs(given, tmp_path / "a.npz", act_layer="gelu")(images()),
    )
    assert 0 < (outputs - expected).abs().max() < 5e-3 * expected.std()


def test_another_image_size(tmp_path: Path) -> None:
    """timm resamples the table bilinearly when it reads the file, and antialiased bicubic elsewhere, as ours does."""
    given = arrays()
    model, state, _ = loaded(given)
    larger = model.change_size(48, 48)
    built = theirs(given, tmp_path / "a.npz", img_size=48)
    layers = __import__("timm.layers").layers
    table = torch.from_numpy(given["Transformer/posembed_input/pos_embedding"])
    built.pos_embed.copy_(layers.resample_abs_pos_embed(table, (6, 6), num_prefix_tokens=1))
    close(positions.resample(table, (4, 4), larger), built.pos_embed)
    close(safetensors.assemble(larger, state)(images(48)), built(images(48)))


def test_representation_layer(tmp_path: Path) -> None:
    """timm no longer reads ``pre_logits``, so its features are finished here: tanh(Dense), then Dense."""
    given = arrays(hidden=20)
    model, state, _ = loaded(given)
    assert (model.head, model.head_mlp_width) == ("mlp", 20)
    features = theirs(given, tmp_path / "a.npz", num_classes=0)(images()).numpy()
    hidden = np.tanh(features @ given["pre_logits/kernel"] + given["pre_logits/bias"])
    expected = torch.from_numpy(hidden @ given["head/kernel"] + given["head/bias"])
    close(safetensors.assemble(model, state)(images()), expected)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_big_vision_equals_timm(pool: str, tmp_path: Path) -> None:
    given = arrays(new=True, pool=pool, prefix="params/")
    model, state, left_out = loaded({**given, "opt/0/count": np.zeros((), np.float32)})
    assert left_out == {"opt/0/count": "state of the optimiser"}
    assert (model.position_prefix, model.class_token, model.pool) == (False, pool == "cls", pool)
    options = {"no_embed_class": True} if pool == "cls" else {"class_token": False, "global_pool": "avg", "fc_norm": False}
    close(safetensors.assemble(model, state)(images()), theirs(given, tmp_path / "a.npz", **options)(images()))


@pytest.mark.parametrize("prefix", ["params/img/", "img/"])
def test_siglip_equals_timm(prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "_SEPARATE", (*safetensors._SEPARATE, ("attn_pool.k.", ("attn_pool.v.",), "attn_pool.kv.")))
    given = arrays(new=True, pool="map", prefix=prefix, head=False)
    outer = prefix.removesuffix("img/")
    text = {f"{outer}txt/Encoder_0/x": np.zeros(3, np.float32), f"{outer}t": np.zeros(1, np.float32)}
    model, state, left_out = loaded({**given, **text})
    assert set(left_out) == set(text)
    assert (model.pool, model.head, model.class_token, model.input.resize) == ("map", "none", False, "stretch")
    options = {"name": "vit_base_patch16_siglip_224", "num_classes": 0}
    plain = {f"params/img/{name.removeprefix(prefix)}": array for name, array in given.items()}
    close(safetensors.assemble(model, state)(images()), theirs(plain, tmp_path / "a.npz", **options)(images()))


def test_a_head_beside_a_text_tower_gives_an_embedding() -> None:
    for prefix, head in (("params/img/", "projection"), ("params/", "linear")):
        model, state, _ = loaded(arrays(new=True, prefix=prefix))
        assert (model.head, model.classes, model.head_bias) == (head, CLASSES, True)
        assert safetensors.assemble(model, state)(images()).shape == (2, CLASSES)


def test_headless_and_older_table() -> None:
    given = arrays(new=True, pool="mean", head=False)
    given["Transformer/pos_embedding"] = given.pop("pos_embedding")
    model, state, _ = loaded(given, "my_name")
    assert (model.name, model.head, model.classes) == ("my_name", "none", 0)
    assert safetensors.assemble(model, state)(images()).shape == (2, D)


def test_crop_of_the_published_size() -> None:
    given = arrays()
    given["Transformer/posembed_input/pos_embedding"] = np.zeros((1, 28 * 28 + 1, D), np.float32)
    assert loaded(given)[0].input.resize_to == 248


def refused(given: Arrays) -> InputError:
    whole = checkpoint(given)
    assert jax.recognise(whole)
    with pytest.raises(InputError) as caught:
        jax.spec(whole, None)
    return caught.value


def added(name: str, *shape: int) -> Arrays:
    return {**arrays(), name: np.zeros(shape, np.float32)}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (added("conv_root/kernel", 7, 7, 3, 8), "hybrid"),
        (added("Transformer/encoderblock/LayerNorm_0/scale", 2, D), "stacked"),
        ({name: array for name, array in arrays().items() if "pos_embedding" not in name}, "no position table"),
        (added("embedding/kernel", 192, D), "NaFlex"),
        ({**arrays(new=True), "pos_embedding": np.zeros((4, 4, D), np.float32)}, "NaFlex"),
        (added("Transformer/posembed_input/pos_embedding", 1, 19, D), "no square"),
        ({name: array for name, array in arrays(hidden=9).items() if not name.startswith("head/")}, "no classes"),
        (added("Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel", D, 2, 16), "2 heads"),
        (added("Transformer/encoderblock_1/MultiHeadDotProductAttention_1/out/kernel", 2, 16, D), "2 heads"),
    ],
)
def test_relatives(given: Arrays, says: str) -> None:
    error = refused(given)
    assert error.code == "VD3015"
    assert says in error.message
    assert error.fix


@pytest.mark.parametrize(
    "given",
    [
        added("embedding/kernel", D),
        added("Transformer/posembed_input/pos_embedding", 1),
        added("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel", D, D),
        added("Transformer/encoderblock_1/MlpBlock_3/Dense_1/kernel", D),
        added("Transformer/encoderblock_1/MlpBlock_3/Dense_1/kernel"),
        added("head/kernel", 0, 3),
        added("cls"),
        {name: array for name, array in arrays().items() if "encoderblock_0" not in name},
    ],
)
def test_damaged_shapes(given: Arrays) -> None:
    assert refused(given).code == "VD3009"


def test_others_are_not_recognised() -> None:
    assert not jax.recognise(checkpoint({}))
    assert not jax.recognise(checkpoint({"stem/kernel": np.zeros(3, np.float32), "MixerBlock_0/x": np.zeros(3, np.float32)}))
