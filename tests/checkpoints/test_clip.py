"""CLIP's image tower: equal to transformers' and to a literal re-statement with torch's own attention; what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn

from tests.checkpoints.test_peers import State, peer, shake
from vitdeploy.checkpoints import clip, safetensors
from vitdeploy.checkpoints.conversion import convert
from vitdeploy.checkpoints.source import Checkpoint
from vitdeploy.errors import InputError
from vitdeploy.spec import ModelSpec

WIDTH, DEPTH, PATCH, SIDE, OUT = 128, 2, 16, 64, 24


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Tower(nn.Module):
    """CLIP's image tower as its paper's code has it, written down once more with `nn.MultiheadAttention`."""

    def __init__(self, act: type[nn.Module], *, heads: int = 2, scaled: bool = False, average: bool = False) -> None:
        super().__init__()
        self.average = average
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn((SIDE // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.proj = nn.Parameter(torch.randn(WIDTH, OUT) * WIDTH**-0.5)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(self.block(act, heads, scaled) for _ in range(DEPTH))

    @staticmethod
    def block(act: type[nn.Module], heads: int, scaled: bool) -> nn.Module:
        block = nn.Module()
        block.attn = nn.MultiheadAttention(WIDTH, heads, batch_first=True)
        block.ln_1, block.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        block.mlp = nn.Sequential()
        for name, part in (("c_fc", nn.Linear(WIDTH, 200)), ("gelu", act()), ("c_proj", nn.Linear(200, WIDTH))):
            block.mlp.add_module(name, part)
        if scaled:
            block.ls_1, block.ls_2 = Scale(), Scale()
        return block

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_embedding.expand(len(x), 1, -1), x), 1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:
            y = block.ln_1(x)
            y = block.attn(y, y, y, need_weights=False)[0]
            x = x + (block.ls_1(y) if hasattr(block, "ls_1") else y)
            y = block.mlp(block.ln_2(x))
            x = x + (block.ls_2(y) if hasattr(block, "ls_2") else y)
        pooled = self.ln_post(x[:, 1:].mean(1)) if self.average else self.ln_post(x[:, 0])
        return pooled @ self.proj


def tower(act: type[nn.Module] = nn.GELU, **options: Any) -> Tower:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Tower(act, **options).eval()
    shake(made)
    return made


def prefixed(state: State) -> State:
    return {f"visual.{name}": tensor for name, tensor in state.items()}


def text() -> State:
    """The other half of a CLIP checkpoint."""
    zeros = torch.zeros
    return {
        "positional_embedding": zeros(77, 16),
        "text_projection": zeros(16, OUT),
        "logit_scale": zeros(()),
        "token_embedding.weight": zeros(100, 16),
        "ln_final.weight": zeros(16),
        "transformer.resblocks.0.attn.in_proj_weight": zeros(48, 16),
        "transformer.resblocks.0.mlp.c_fc.bias": zeros(64),
    }


BUFFERS = {name: torch.tensor(1.0) for name in clip.OPENAI_BUFFERS}


def checkpoint(state: State, path: Path = Path("clip.pt"), config: dict[str, Any] | None = None) -> Checkpoint:
    return Checkpoint(path, dict(state), config or {}, {}, {}, ())


def loaded(given: Checkpoint, architecture: str | None = None) -> tuple[ModelSpec, State, dict[str, str]]:
    assert clip.recognise(given)
    model = clip.SOURCE.spec(given, architecture)
    converted = convert(given.state, clip.SOURCE.rules(given, model))
    assert not converted.unknown
    return model, converted.state, converted.left_out


def equal(model: ModelSpec, state: State, run: Any, share: float = 1e-5) -> None:
    images = torch.randn(2, 3, model.input.height, model.input.width, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected, outputs = run(images), safetensors.assemble(model, state)(images)
    assert outputs.shape == expected.shape
    assert (outputs - expected).abs().max() <= share * expected.std()


@pytest.mark.parametrize("visual", [True, False])
@pytest.mark.parametrize(("act", "name"), [(nn.GELU, "ViT-B-16"), (QuickGELU, "ViT-B-16-quickgelu"), (QuickGELU, "ViT-B/16")])
def test_equals_a_literal_tower(act: type[nn.Module], name: str, visual: bool) -> None:
    theirs = tower(act)
    state = {**prefixed(theirs.state_dict()), **text()} if visual else theirs.state_dict()
    model, ours, left_out = loaded(checkpoint(state), name)
    equal(model, ours, theirs)
    assert (set(left_out) == set(text())) if visual else not left_out
    assert all(left_out.values())
    assert (model.classes, model.heads, model.mlp_width, model.pre_norm, model.head_bias) == (OUT, 2, 200, True, False)
    assert (model.head, model.output, model.classifies) == ("projection", "embedding", False)
    assert model.input.mean == clip.MEAN
    assert model.input.resize == "shortest"
    assert model.input.shorter == SIDE


def test_openai_checkpoints_say_it_themselves() -> None:
    theirs = tower(QuickGELU)
    model, ours, left_out = loaded(checkpoint({**prefixed(theirs.state_dict()), **text(), **BUFFERS}))
    assert model.mlp == "quick_gelu"
    assert set(BUFFERS) <= set(left_out)
    equal(model, ours, theirs)


@pytest.mark.parametrize("quick", [True, False])
def test_open_clip_configuration_decides(quick: bool, tmp_path: Path) -> None:
    theirs = tower(QuickGELU if quick else nn.GELU, heads=4)
    vision = {"image_size": SIDE, "patch_size": PATCH, "width": WIDTH, "layers": DEPTH, "head_width": 32}
    preparation = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    config = {"model_cfg": {"embed_dim": OUT, "quick_gelu": quick, "vision_cfg": vision}, "preprocess_cfg": preparation}
    (tmp_path / clip.CONFIG).write_text(json.dumps(config))
    for given in (
        checkpoint(prefixed(theirs.state_dict()), tmp_path),
        checkpoint(prefixed(theirs.state_dict()), tmp_path / "open_clip_model.safetensors"),
        checkpoint(prefixed(theirs.state_dict()), Path("elsewhere.pt"), config),
    ):
        model, ours, _ = loaded(given)
        assert model.mlp == ("quick_gelu" if quick else "gelu")
        assert (model.input.resize, model.input.interpolation, model.input.std) == ("stretch", "bilinear", (0.25,) * 3)
        equal(model, ours, theirs)


def test_open_clip_options(tmp_path: Path) -> None:
    theirs = tower(scaled=True, average=True)
    theirs.ln_pre = nn.Identity()
    for part in (theirs.ln_post, *(m for m in theirs.modules() if isinstance(m, nn.LayerNorm))):
        part.eps = 1e-6
    vision = {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True, "norm_kwargs": {"eps": 1e-6}}
    (tmp_path / clip.CONFIG).write_text(json.dumps({"model_cfg": {"vision_cfg": vision}}))
    model, ours, _ = loaded(checkpoint(prefixed(theirs.state_dict()), tmp_path))
    assert (model.pool, model.final_norm, model.pre_norm, model.layer_scale) == ("mean", "pooled", False, 1e-5)
    equal(model, ours, theirs)


def test_without_projection() -> None:
    theirs = tower()
    state = theirs.state_dict()
    del state["proj"]
    model, ours, _ = loaded(checkpoint(state), "ViT-B-16")
    assert (model.head, model.classes) == ("none", 0)
    with torch.no_grad():
        theirs.proj = nn.Parameter(torch.eye(WIDTH))
    equal(model, ours, theirs)


RENAMES = {  # transformers' name to OpenAI's
    r"^vision_model\.embeddings\.class_embedding": "class_embedding",
    r"^vision_model\.embeddings\.patch_embedding": "conv1",
    r"^vision_model\.embeddings\.position_embedding\.weight": "positional_embedding",
    r"^vision_model\.pre_layrnorm": "ln_pre",
    r"^vision_model\.post_layernorm": "ln_post",
    r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm": r"transformer.resblocks.\1.ln_",
    r"^vision_model\.encoder\.layers\.(\d+)\.self_attn": r"transformer.resblocks.\1.attn",
    r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.fc1": r"transformer.resblocks.\1.mlp.c_fc",
    r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.fc2": r"transformer.resblocks.\1.mlp.c_proj",
}


def openai_names(state: State) -> State:
    named = {}
    for name, tensor in state.items():
        for pattern, new in RENAMES.items():
            name = re.sub(pattern, new, name)
        named[name] = tensor
    for kind in ("weight", "bias"):
        for block in range(DEPTH):
            parts = [named.pop(f"transformer.resblocks.{block}.attn.{part}_proj.{kind}") for part in "qkv"]
            named[f"transformer.resblocks.{block}.attn.in_proj_{kind}"] = torch.cat(parts)
    named["proj"] = named.pop("visual_projection.weight").T
    return prefixed(named)


@pytest.mark.parametrize("side", [SIDE, 96])
@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_equals_transformers(act: str, side: int) -> None:
    transformers = peer("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=200, projection_dim=OUT, num_hidden_layers=DEPTH, num_attention_heads=2,
        image_size=SIDE, patch_size=PATCH, hidden_act=act,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = transformers.CLIPVisionModelWithProjection(config).eval()
    shake(theirs)
    state = {name: tensor for name, tensor in theirs.state_dict().items() if not name.endswith("position_ids")}
    given = checkpoint(openai_names(state))
    model, ours, _ = loaded(given, "ViT-B-16-quickgelu" if act == "quick_gelu" else "ViT-B-16")
    model = msgspec.structs.replace(model.change_size(side, side), position_resample="bicubic")  # transformers: no antialias
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        outputs = safetensors.assemble(model, ours, clip.grid(given))(images)
        expected = theirs(images, interpolate_pos_encoding=side != SIDE).image_embeds
    assert (outputs - expected).abs().max() <= 1e-5 * expected.std()


def test_not_square(tmp_path: Path) -> None:
    state = tower().state_dict()
    state["positional_embedding"] = torch.randn(2 * 3 + 1, WIDTH)
    with pytest.raises(InputError, match="no square") as caught:
        clip.spec(checkpoint(state, tmp_path), "ViT-B-16")
    assert caught.value.code == "VD3015"
    vision = {"image_size": [32, 48], "patch_size": PATCH}
    (tmp_path / clip.CONFIG).write_text(json.dumps({"model_cfg": {"vision_cfg": vision}}))
    given = checkpoint(state, tmp_path)
    model, ours, _ = loaded(given)
    assert (model.input.height, model.input.width, clip.grid(given)) == (32, 48, (2, 3))
    assert safetensors.assemble(model.change_size(64, 64), ours, clip.grid(given)).pos_embed.shape == (1, 17, WIDTH)


def refused(given: Checkpoint, architecture: str | None = None) -> InputError:
    assert clip.recognise(given)
    with pytest.raises(InputError) as caught:
        clip.spec(given, architecture)
    return caught.value


def test_the_activation_is_not_guessed() -> None:
    error = refused(checkpoint(prefixed(tower().state_dict())))
    assert error.code == "VD3015"
    assert "GELU or QuickGELU" in error.message
    assert "ViT-B-32-quickgelu" in error.fix


def test_names_that_do_not_fit() -> None:
    given = checkpoint(prefixed(tower().state_dict()))
    assert refused(given, "ViT-B-32").code == "VD3009"
    assert refused(given, "resnet50").code == "VD3015"


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("visual.trunk.blocks.0.norm1.weight", "timm's"),
        ("visual.attnpool.q_proj.weight", "ResNet"),
        ("visual.attn_pool.query", "CoCa"),
    ],
)
def test_other_towers(extra: str, says: str) -> None:
    error = refused(checkpoint({**prefixed(tower().state_dict()), extra: torch.zeros(2)}), "ViT-B-16")
    assert error.code == "VD3015"
    assert says in error.message


@pytest.mark.parametrize(
    "config",
    [
        {"model_cfg": {"vision_cfg": {"attentional_pool": True}}},
        {"model_cfg": {"vision_cfg": {"pool_type": "none"}}},
        {"model_cfg": {"vision_cfg": {"head_width": 0}}},
        {"model_cfg": {"vision_cfg": {"head_width": "wide"}}},
        {"model_cfg": {"vision_cfg": {"norm_kwargs": {"eps": "x"}}}},
        {"model_cfg": {"vision_cfg": {"norm_kwargs": [1]}}},
        {"model_cfg": {"vision_cfg": [1]}},
        {"model_cfg": {}, "preprocess_cfg": {"resize_mode": "longest"}},
        {"model_cfg": {}, "preprocess_cfg": {"mean": 1}},
        {"model_cfg": {}, "preprocess_cfg": {"mean": [1]}},
        {"model_cfg": {}, "preprocess_cfg": [1]},
    ],
)
def test_configurations_that_are_not_supported(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / clip.CONFIG).write_text(json.dumps(config))
    assert refused(checkpoint(prefixed(tower().state_dict()), tmp_path)).code == "VD3015"


def test_damaged_configuration(tmp_path: Path) -> None:
    (tmp_path / clip.CONFIG).write_text('{"model_cfg": ')
    assert refused(checkpoint(prefixed(tower().state_dict()), tmp_path)).code == "VD3015"


@pytest.mark.parametrize("name", ["conv1.weight", "positional_embedding", "transformer.resblocks.0.mlp.c_fc.weight"])
def test_tensors_that_are_missing_or_flat(name: str) -> None:
    state = tower().state_dict()
    without = {key: tensor for key, tensor in state.items() if key != name}
    assert refused(checkpoint(without), "ViT-B-16").code == "VD3009"
    assert refused(checkpoint({**state, name: torch.zeros(3)}), "ViT-B-16").code == "VD3009"


def test_others_are_not_recognised() -> None:
    assert not clip.recognise(checkpoint({"cls_token": torch.zeros(1), "blocks.0.attn.qkv.weight": torch.zeros(1)}))
    assert not clip.recognise(checkpoint({}))
