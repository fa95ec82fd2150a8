"""timm's checkpoints: every line of the table of names held to timm, on random weights and on its own preparation."""

from __future__ import annotations

import inspect
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.checkpoints.cases import pixels
from tests.checkpoints.test_peers import peer, shake
from tests.checkpoints.timm_cases import CASES, REFUSED, Case
from vitdeploy.checkpoints import safetensors
from vitdeploy.checkpoints.conversion import convert
from vitdeploy.checkpoints.families import Source, load
from vitdeploy.checkpoints.source import Checkpoint
from vitdeploy.checkpoints.timm import SOURCE
from vitdeploy.checkpoints.timm_names import understand
from vitdeploy.data import images
from vitdeploy.errors import InputError, UsageError
from vitdeploy.models.freeze import freeze
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.spec import ModelSpec
from vitdeploy.zoo.cost import count_parameters
from vitdeploy.zoo.variants import VARIANTS

State = dict[str, Tensor]


def checkpoint(state: State, config: dict[str, Any] | None = None) -> Checkpoint:
    return Checkpoint(Path("model.pth"), {name: value.float() for name, value in state.items()}, config or {}, {}, {}, ())


def loaded(source: Source, given: Checkpoint, name: str | None = None) -> VisionTransformer:
    """The model that `load` would make; every tensor must have been known."""
    assert source.recognise(given)
    model = source.spec(given, name)
    converted = convert(given.state, source.rules(given, model))
    assert not converted.unknown
    return safetensors.assemble(model, converted.state, source.grid(given))


def close(ours: VisionTransformer, run: Callable[[Tensor], Tensor], share: float = 1e-5) -> None:
    """Ours, as it is and frozen, computes what ``run`` does, within ``share`` of its standard deviation."""
    batch = pixels(ours.spec, 2)
    with torch.no_grad():
        expected = run(batch)
        for built in (ours, freeze(ours)):
            outputs = built(batch)
            assert outputs.shape == expected.shape
            assert (outputs - expected).abs().max() <= share * expected.std()


def created(timm: ModuleType, case: Case, **more: Any) -> nn.Module:
    """timm's model with every parameter random."""
    arguments = {"depth": case.depth, **case.arguments, **more}
    if case.side:
        arguments["img_size"] = case.side
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(case.name, **arguments).eval()
    shake(model)
    return model


def ids(case: Case) -> str:
    return "-".join([case.name, *(f"{key}={value}" for key, value in case.arguments.items())])


@pytest.mark.sampled(6)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_equals_timm(case: Case) -> None:
    theirs = created(peer("timm"), case)
    changed = {key: case.arguments[key] for key in ("patch_size",) if key in case.arguments}
    config: dict[str, Any] = {"model_args": {"depth": case.depth, **changed}}
    if case.sized:
        config["pretrained_cfg"] = {"input_size": [3, case.side, case.side]}
    ours = loaded(SOURCE, checkpoint(theirs.state_dict(), config), f"timm/{case.name}.some_tag")
    assert ours.spec.name == case.name
    close(ours, theirs)
    assert count_parameters(ours.spec) == sum(parameter.numel() for parameter in theirs.parameters())


@pytest.mark.parametrize(
    ("name", "side", "other", "config"),
    [
        ("vit_tiny_patch16_224", (96, 96), (128, 160), None),
        ("vit_tiny_patch16_224", (64, 96), (64, 96), [3, 64, 96]),
        ("deit_tiny_distilled_patch16_224", (96, 96), (64, 128), None),
        ("deit3_small_patch16_224", (96, 96), (48, 64), None),
        ("vit_small_patch14_dinov2", (98, 98), (56, 70), None),
        ("vit_small_patch14_reg4_dinov2", (98, 98), (56, 70), None),
        ("vit_so150m2_patch16_reg1_gap_256", (64, 64), (96, 96), None),
        ("eva02_tiny_patch14_336", (112, 112), (70, 112), None),
        ("vit_base_patch32_clip_224", (128, 128), (96, 96), None),
        ("vit_base_patch16_siglip_224", (64, 64), (80, 80), None),
        ("flexivit_small", (96, 96), (128, 128), None),
        ("beit_base_patch16_224", (64, 96), (64, 96), [3, 64, 96]),
    ],
)
def test_equals_timm_at_another_size(name: str, side: tuple[int, int], other: tuple[int, int], config: list[int] | None) -> None:
    theirs = created(peer("timm"), Case(name, ""), img_size=side)
    given = checkpoint(theirs.state_dict(), {"pretrained_cfg": {"input_size": config}} if config else None)
    model = SOURCE.spec(given, name)
    assert (model.input.height, model.input.width) == side
    converted = convert(given.state, SOURCE.rules(given, model))
    ours = safetensors.assemble(model.change_size(*other), converted.state, SOURCE.grid(given))
    if other != side:
        theirs.set_input_size(img_size=other)  # type: ignore[operator]
    close(ours, theirs)


def test_dinov3_at_another_size() -> None:
    theirs = created(peer("timm"), Case("vit_small_patch16_dinov3", ""), dynamic_img_size=True)
    given = checkpoint(theirs.state_dict())
    model = SOURCE.spec(given, "vit_small_patch16_dinov3").change_size(96, 160)
    close(safetensors.assemble(model, convert(given.state, SOURCE.rules(given, model)).state), theirs)


def test_older_files_of_beit_hold_the_index_too() -> None:
    theirs = created(peer("timm"), Case("beit_base_patch16_224", "", 64))
    index = {f"blocks.{i}.attn.relative_position_index": torch.zeros(17, 17) for i in range(2)}
    close(loaded(SOURCE, checkpoint({**theirs.state_dict(), **index}), "beit_base_patch16_224"), theirs)


OTHER_CROP = {  # the first weights in timm's list are fine-tuned ones, or timm crops where the authors of CLIP do not
    *("vit_base_patch16_clip_224", "vit_base_patch32_clip_224", "vit_base_patch32_clip_quickgelu_224"),
    *("vit_betwixt_patch32_clip_224", "vit_medium_patch16_clip_224", "vit_medium_patch32_clip_224"),
    *("vit_xsmall_patch16_clip_224", "vit_large_patch14_clip_336"),
}


def registered(timm: ModuleType) -> list[str]:
    from timm.models import list_models

    return sorted({name for module in ("vision_transformer", "deit", "eva", "beit") for name in list_models(module=module)})


@pytest.mark.slow
def test_every_name_of_timm_is_known_and_its_facts_are_timms() -> None:
    """Heads, activation, epsilon, pool, parameters and preparation of each default configuration, on shapes alone."""
    timm = peer("timm")
    known = 0
    for name in registered(timm):
        try:
            with torch.device("meta"):
                theirs = timm.create_model(name, depth=1)
        except (TypeError, AssertionError):  # no depth to give: networks of other kinds
            continue
        config = {key: theirs.pretrained_cfg[key] for key in ("architecture", "input_size")}
        given = checkpoint(dict(theirs.state_dict()), config)
        try:
            ours = SOURCE.spec(given, f"{name}.{theirs.pretrained_cfg['tag']}")
        except InputError as error:
            assert error.code == "VD3015", name
            continue
        known += 1
        same_facts(ours, theirs, name)
    assert known > 170


def test_every_depth_is_timms() -> None:
    timm = peer("timm")
    for name in registered(timm):
        try:
            known = understand(name, Path("x"))
        except InputError:  # refused
            continue
        built = inspect.getsource(timm.models.model_entrypoint(name))
        depth = re.search(r"\bdepth=(\d+)", built)
        assert known.size.depth == (int(depth[1]) if depth else 12), name


def same_facts(ours: ModelSpec, theirs: Any, name: str) -> None:
    block = theirs.blocks[0]
    assert ours.heads == block.attn.num_heads, name
    assert ours.norm_eps == block.norm1.eps, name
    assert ours.pool == {"token": "cls", "avg": "mean", "map": "map"}[theirs.global_pool], name
    acts = {"swiglu": "SiLU", "gelu": "GELU", "gelu_tanh": "GELUTanh", "quick_gelu": "QuickGELU"}
    assert acts[ours.mlp] == type(block.mlp.act).__name__, name
    assert count_parameters(ours) == sum(parameter.numel() for parameter in theirs.parameters()), name
    given = theirs.pretrained_cfg
    squash = given["crop_mode"] == "squash"
    prepared = (ours.input.mean, ours.input.std, ours.input.interpolation)
    assert prepared == (given["mean"], given["std"], given["interpolation"]), name
    side = ours.input.height
    if name not in OTHER_CROP:
        assert (ours.input.resize == "stretch") == squash, name
        assert ours.input.resize_to == (None if squash else int(side / given["crop_pct"])), name


@pytest.mark.parametrize("name", REFUSED)
def test_other_networks_are_refused_by_name(name: str) -> None:
    with pytest.raises(InputError) as caught:
        understand(name, Path("model.pth"))
    assert caught.value.code == "VD3015" and name in caught.value.message


def test_variants_agree_with_the_table() -> None:
    for name, variant in VARIANTS.items():
        architecture = understand(name, Path("x"))
        spec = variant.spec
        assert architecture.size == (spec.width, spec.depth, spec.heads), name
        assert (architecture.patch, architecture.patch) == spec.patch, name
        assert architecture.family.facts.get("norm_eps", 1e-6) == spec.norm_eps, name
        assert architecture.family.facts.get("rotary", "none") == variant.spec.rotary, name


PREPARED = [
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_tiny_patch16_384.augreg_in21k_ft_in1k",
    "deit_tiny_patch16_224.fb_in1k",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_small_patch16_dinov3.lvd1689m",
    "vit_base_patch32_clip_224.openai",
    "vit_base_patch16_clip_384.laion2b_ft_in1k",
    "vit_base_patch16_siglip_224.webli",
    "eva02_tiny_patch14_224.mim_in22k",
    "vit_base_patch16_224_miil.in21k",
]


@pytest.mark.parametrize("size", [(301, 417), (640, 233)])
@pytest.mark.parametrize("name", PREPARED)
def test_pixels_are_prepared_as_timm_does(name: str, size: tuple[int, int]) -> None:
    timm, data = peer("timm"), peer("timm.data")
    theirs = timm.create_model(name, depth=1)
    settings = data.resolve_model_data_config(theirs)
    given = checkpoint(theirs.state_dict(), {"architecture": name.partition(".")[0], "pretrained_cfg": theirs.pretrained_cfg})
    contract = SOURCE.spec(given, None).input
    noise = np.random.default_rng(3).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size).save(buffer, "PNG")
    expected = data.create_transform(**settings, is_training=False)(Image.open(buffer).convert("RGB"))
    tensor = images.to_tensor(images.load(buffer.getvalue(), contract)[None], contract)[0]
    assert (torch.from_numpy(tensor) - expected).abs().max() <= 1 / 255 / min(contract.std)


def config(**changes: Any) -> dict[str, Any]:
    prepared = {"input_size": [3, 224, 224], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.875}
    return {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 3,
        "global_pool": "token",
        "label_names": ["ant", "bee", "cat"],
        "pretrained_cfg": {**prepared, "interpolation": "bilinear", "crop_mode": "center"},
        **changes,
    }


def tiny(**arguments: Any) -> State:
    model = created(peer("timm"), Case("vit_tiny_patch16_224", "", 224, {"num_classes": 3, **arguments}, 1))
    return dict(model.state_dict())


def test_the_configuration_overrules_the_name() -> None:
    model = SOURCE.spec(checkpoint(tiny(), config()), None)
    assert (model.input.mean, model.input.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (model.input.resize_to, model.input.interpolation) == (256, "bilinear")
    assert model.labels == ("ant", "bee", "cat")
    assert model.heads == 3
    changed = config(global_pool="avg", model_args={"num_heads": 6, "act_layer": "quick_gelu", "drop_path_rate": 0.1})
    model = SOURCE.spec(checkpoint(tiny(), changed), None)
    assert (model.heads, model.mlp, model.pool) == (6, "quick_gelu", "mean")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": None}, "architecture's name"),
        ({"model_args": {"block_fn": "x"}}, "block_fn"),
        ({"model_args": {"act_layer": "mish"}}, "mish"),
        ({"global_pool": "avgmax"}, "avgmax"),
        ({"pretrained_cfg": {"crop_mode": "border"}}, "border"),
        ({"pretrained_cfg": {"crop_mode": "squash", "crop_pct": 0.95}}, "squash"),
        ({"pretrained_cfg": {"interpolation": "lanczos"}}, "lanczos"),
        ({"pretrained_cfg": {"crop_pct": "most"}}, "crop_pct"),
        ({"pretrained_cfg": {"mean": 0.5}}, "mean"),
        ({"model_args": {"num_heads": "three"}}, "num_heads"),
        ({"model_args": []}, "model_args"),
    ],
)
def test_what_is_not_understood_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        SOURCE.spec(checkpoint(tiny(), config(**changes)), None)
    assert caught.value.code == "VD3015"


_STRETCHED = {"resize": ("shortest", "stretch")}
_PROJECTION: dict[str, Any] = {"head": ("linear", "projection"), "head_bias": (True, False)}
_DINOV2: dict[str, Any] = {"shorter": (518, 592)}
_DINOV3 = {"pool": ("mean", "cls"), **_STRETCHED, "interpolation": ("bicubic", "bilinear")}
DIFFERENT: tuple[tuple[str, dict[str, Any]], ...] = (  # pattern: field: timm's weights, the variant alone
    (r"deit_.*|vit_small_patch8_224", {"shorter": (248, 256)}),
    (r"vit_\w+_patch14_dinov2", {"position_resample": ("bicubic-antialias", "bicubic-offset"), **_DINOV2}),
    (r"vit_\w+_patch14_reg4_dinov2", _DINOV2),
    (r"vit_\w+_dinov3(_qkvb)?", _DINOV3),
    (r"vit_\w+_clip_quickgelu_224", _PROJECTION),  # timm's head has a bias, of zeros in OpenAI's weights
    (r"vit_base_patch16_siglip_224", {"mlp": ("gelu", "gelu_tanh"), **_STRETCHED}),
    (r"eva02_base_patch14_448", {"resize": ("stretch", "shortest")}),
)


def flat(model: ModelSpec) -> dict[str, object]:
    """All fields, those of the contract among them, as they count."""
    contract = model.input
    fields = {**msgspec.structs.asdict(model), **msgspec.structs.asdict(contract), "mlp_width": model.mlp_size}
    for name in ("name", "source", "input", "labels", "resize_to"):
        del fields[name]
    return fields if contract.resize == "stretch" else {**fields, "shorter": contract.shorter}


@pytest.mark.slow
def test_a_name_with_weights_is_the_variant_but_for_pool_and_preparation() -> None:
    """The same tensors, with timm's pool and crop instead of the authors'; see the top of `weights.timm`."""
    timm = peer("timm")
    for name, variant in VARIANTS.items():
        alone = variant.spec
        with torch.device("meta"):
            theirs = timm.create_model(name, num_classes=alone.classes)
        given = checkpoint(dict(theirs.state_dict()), {"pretrained_cfg": {"input_size": theirs.pretrained_cfg["input_size"]}})
        ours = SOURCE.spec(given, name)
        bias = alone.classes * (ours.head_bias - alone.head_bias)
        assert count_parameters(ours) == count_parameters(alone) + bias, name
        left, right = flat(ours), flat(alone)
        both = left.keys() & right.keys()  # a stretched image has no shorter side
        found = {field: (left[field], right[field]) for field in both if left[field] != right[field]}
        assert found == next((told for pattern, told in DIFFERENT if re.fullmatch(pattern, name)), {}), name


MISFITS = {  # name, arguments that timm was told, configuration: words of the message
    "width": ("vit_small_patch16_224", {}, {}, "vit_small_patch16_224 has width 384, the weights have 192"),
    "tiny as base": ("vit_base_patch32_224", {}, {}, "vit_base_patch32_224 has width 768, the weights have 192"),
    "patch": ("vit_tiny_patch32_224", {}, {}, "vit_tiny_patch32_224 has patch (32, 32), the weights have (16, 16)"),
    "own width": ("vit_tiny_patch16_224", {"embed_dim": 96, "num_heads": 2}, {}, "has width 192, the weights have 96"),
    "own patch": ("vit_tiny_patch16_224", {"patch_size": 8}, {}, "has patch (16, 16), the weights have (8, 8)"),
    "head size": ("vit_tiny_patch16_224", {"num_heads": 6, "qk_norm": True}, {}, "has heads 3, the weights have 6"),
    "gated": ("eva02_tiny_patch16_224", {}, {}, "has MLP SwiGLU, the weights have plain"),
    "positions": ("vit_tiny_patch16_dinov3", {}, {}, "has position table none, the weights have learned"),
    "configuration": ("vit_tiny_patch16_224", {}, {"depth": 12}, "config.json has depth 12, the weights have 1"),
    "heads": ("vit_tiny_patch16_224", {}, {"num_heads": 5}, "queries of 192 numbers, which 5 heads can't share"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_name_that_does_not_fit_is_refused(case: str) -> None:
    name, arguments, told, words = MISFITS[case]
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        SOURCE.spec(checkpoint(tiny(**arguments), {"model_args": told}), name)
    assert caught.value.code == "VD3009" and caught.value.file == "model.pth" and caught.value.fix


@pytest.mark.parametrize("arguments", [{"embed_dim": 96, "num_heads": 2}, {"patch_size": 8}, {"num_heads": 6, "qk_norm": True}])
def test_the_configuration_says_what_timm_was_told(arguments: dict[str, Any]) -> None:
    model = SOURCE.spec(checkpoint(tiny(**arguments), config(model_args=arguments)), None)
    assert model.heads == arguments.get("num_heads", 3)


def test_another_depth_is_noted(tmp_path: Path) -> None:
    save_file({name: value.contiguous() for name, value in tiny().items()}, tmp_path / "model.safetensors")
    note = "has 1 blocks, vit_tiny_patch16_224 has 12"
    assert load(tmp_path / "model.safetensors", "vit_tiny_patch16_224").origin["notes"] == [note]
    (tmp_path / "config.json").write_text(json.dumps(config(model_args={"depth": 1})))
    assert load(tmp_path).origin["notes"] == []


def test_a_tensor_given_twice_is_refused_with_its_file(tmp_path: Path) -> None:
    state = {**tiny(), "blocks.0.ls1.gamma": torch.ones(192), "blocks.0.gamma_1": torch.ones(192)}
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="two tensors") as caught:
        load(tmp_path / "model.safetensors", "vit_tiny_patch16_224")
    assert caught.value.file == str(tmp_path / "model.safetensors")


def test_a_name_is_needed() -> None:
    with pytest.raises(InputError) as caught:
        SOURCE.spec(checkpoint(tiny()), None)
    assert "give the architecture's name" in caught.value.fix


def test_a_typing_mistake_finds_its_neighbour() -> None:
    with pytest.raises(UsageError) as caught:
        SOURCE.spec(checkpoint(tiny()), "vit_tyni_patch16_224")
    assert caught.value.code == "VD2001" and "vit_tiny_patch16_224" in caught.value.fix


def without(state: State, *names: str) -> State:
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.0.mlp.fc2.weight"])
def test_half_a_network_is_refused(name: str) -> None:
    with pytest.raises(InputError) as caught:
        SOURCE.spec(checkpoint(without(tiny(), name)), "vit_tiny_patch16_224")
    assert caught.value.code == "VD3009" and name in caught.value.message


def test_a_gap_in_the_blocks_is_found_at_once() -> None:
    state = {**tiny(), "blocks.99999999.norm1.weight": torch.zeros(192)}
    with pytest.raises(InputError, match=re.escape("blocks.1.norm1.weight")):
        SOURCE.spec(checkpoint(state), "vit_tiny_patch16_224")


def test_names_of_the_authors_of_eva02() -> None:
    theirs = created(peer("timm"), Case("eva02_base_patch14_448", "", 56, {}, 1))
    names = {
        "q_proj.bias": "q_bias",
        "v_proj.bias": "v_bias",
        "fc1_g": "w1",
        "fc1_x": "w2",
        "fc2": "w3",
        "mlp.norm": "mlp.ffn_ln",
    }
    state = {}
    for name, value in theirs.state_dict().items():
        for ours, other in names.items():
            name = name.replace(ours, other)
        state[name] = value
    state["blocks.0.attn.rope.freqs_cos"] = torch.zeros(16, 64)
    close(loaded(SOURCE, checkpoint(state), "eva02_base_patch14_448"), theirs)


def test_a_folder_from_the_hub_loads(tmp_path: Path) -> None:
    save_file({name: value.contiguous() for name, value in tiny().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config()))
    found = load(tmp_path)
    assert found.spec.name == "vit_tiny_patch16_224" and found.origin["source"] == "timm"
    assert found.spec.labels == ("ant", "bee", "cat") and found.grid == (14, 14)
    safetensors.assemble(found.spec, found.state, found.grid)


def test_a_folder_of_transformers_around_timm(tmp_path: Path) -> None:
    transformers = peer("transformers")
    given = {**config(), "model_args": {"depth": 1, "img_size": 32}, "num_labels": 3, "id2label": {0: "x", 1: "y", 2: "z"}}
    del given["label_names"], given["num_classes"]
    given["pretrained_cfg"] = {**given["pretrained_cfg"], "input_size": [3, 32, 32]}
    theirs = transformers.TimmWrapperForImageClassification(transformers.TimmWrapperConfig(**given)).eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path)
    found = load(tmp_path)
    assert (found.spec.labels, found.spec.input.mean, found.spec.input.height) == (("x", "y", "z"), (0.1, 0.2, 0.3), 32)
    assert found.origin["notes"] == [
        f"stripped 'timm_model.', under which the network stands, from {len(theirs.state_dict())} of "
        f"{len(theirs.state_dict())} names"
    ]
    close(safetensors.assemble(found.spec, found.state, found.grid), lambda batch: theirs(batch).logits)


def test_labels_by_number() -> None:
    names = {"0": "a", "2": "c", "1": "b"}
    model = SOURCE.spec(checkpoint(tiny(), {**config(label_names=None), "model_type": "timm_wrapper", "id2label": names}), None)
    assert model.labels == ("a", "b", "c")


def test_a_table_that_is_no_grid_is_refused() -> None:
    state = tiny()
    state["pos_embed"] = state["pos_embed"][:, :180]
    with pytest.raises(InputError, match="180 rows"):
        SOURCE.spec(checkpoint(state), "vit_tiny_patch16_224")


def test_a_distilled_network_needs_both_heads() -> None:
    model = created(peer("timm"), Case("deit_tiny_distilled_patch16_224", "", 0, {"num_classes": 0}, 1))
    with pytest.raises(InputError, match="distillation"):
        SOURCE.spec(checkpoint(dict(model.state_dict())), "deit_tiny_distilled_patch16_224")


def test_unknown_tensors_stay_unknown() -> None:
    given = checkpoint({**tiny(), "blocks.0.attn.secret": torch.zeros(1)})
    model = SOURCE.spec(given, "vit_tiny_patch16_224")
    converted = convert(given.state, SOURCE.rules(given, model))
    assert converted.unknown == ("blocks.0.attn.secret",)
    with pytest.raises(InputError, match="secret"):
        safetensors.assemble(model, converted.state)
