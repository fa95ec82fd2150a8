"""Hugging Face folders give the numbers of transformers: every class, both generations of names, two more image sizes."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.checkpoints.cases import pixels
from tests.checkpoints.huggingface_cases import HUGGINGFACE, SMALL, TEXT, Case
from tests.checkpoints.huggingface_folders import State, checkpoint, plain, transformers
from vitdeploy.checkpoints import safetensors
from vitdeploy.checkpoints.conversion import convert
from vitdeploy.checkpoints.families import load
from vitdeploy.checkpoints.huggingface import FAMILIES, SOURCE, recognise
from vitdeploy.checkpoints.source import Checkpoint
from vitdeploy.errors import InputError, VitdeployError
from vitdeploy.models import relative
from vitdeploy.models.freeze import freeze
from vitdeploy.models.vit import RelativeBias, VisionTransformer
from vitdeploy.zoo import cost

CASES = {case.id: case for case in HUGGINGFACE}
SHARE = 1e-5
FIXED = ("dinov2", "dinov2_with_registers", "dinov3_vit")  # resample without being asked
POOLER = (*FIXED, "clip", "clip_vision_model", "siglip", "siglip_vision_model", "beit", "data2vec-vision")
TOWERS = ("vit", "deit", "dinov2", "dinov2_with_registers", "vision_model", "ijepa", "beit", "data2vec_vision")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of theirs
        yield


def build(case: Case) -> nn.Module:
    """Their model, every parameter random so that nothing is right by being zero or one."""
    kind = getattr(transformers(), case.architecture)
    options = {**SMALL, **case.options}
    if case.vision:
        options = {"vision_config": options, "text_config": TEXT, "projection_dim": 24, "num_labels": options["num_labels"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(kind.config_class(**options)).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def saved(model: Any, folder: Path) -> tuple[State, dict[str, Any]]:
    """State and configuration as `save_pretrained` writes them, which is with the hub's names."""
    from safetensors.torch import load_file

    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


def assembled(found: Checkpoint) -> tuple[VisionTransformer, dict[str, str]]:
    """What `load` and `assemble` do, and nothing unknown on the way."""
    assert SOURCE.recognise(found)
    spec = SOURCE.spec(found, None)
    converted = convert(found.state, SOURCE.rules(found, spec))
    assert not converted.unknown
    assert all(converted.left_out.values()), "a tensor is left out without a reason"
    grid = SOURCE.grid(found)
    assert grid is not None
    return safetensors.assemble(spec, converted.state, grid), converted.left_out


def reference(theirs: Any, case: Case, given: Tensor) -> tuple[Tensor, Tensor]:
    """Main output and tokens, by the table in the module's docstring."""
    kind = theirs.config.model_type
    arguments: dict[str, Any] = {} if kind in FIXED else {"interpolate_pos_encoding": True}
    if kind == "vit_mae":
        count = given.shape[2] * given.shape[3] // 64
        arguments["noise"] = torch.arange(count).float().expand(len(given), -1)  # keeps the order of the patches
    tower = next((getattr(theirs, name) for name in TOWERS if hasattr(theirs, name)), theirs)
    out = tower(given, **arguments)
    tokens = out.last_hidden_state
    if case.architecture == "BeitForMaskedImageModeling":
        tokens = theirs.layernorm(tokens)
        return tokens[:, 1:].mean(1), tokens
    if "ImageClassification" in case.architecture:
        return theirs(given, **arguments).logits, tokens
    if case.family == "CLIP":
        tokens = tower.post_layernorm(tokens)
    if kind in POOLER and out.pooler_output is not None:
        pooled = out.pooler_output
        return (theirs.visual_projection(pooled) if hasattr(theirs, "visual_projection") else pooled), tokens
    if case.family == "data2vec":  # has no pooler unless it is asked for one
        return tokens[:, 1:].mean(1), tokens
    return (tokens[:, 0] if hasattr(tower.embeddings, "cls_token") else tokens.mean(1)), tokens


@pytest.mark.sampled(6)
@pytest.mark.parametrize("names", ["hub", "memory"])
@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str, names: str, tmp_path: Path) -> None:
    case = CASES[name]
    theirs = build(case)
    state, config = saved(theirs, tmp_path)
    for size in case.sizes:
        ours, _ = assembled(checkpoint(state if names == "hub" else dict(theirs.state_dict()), config, size))
        assert ours.spec.classifies == case.architecture.endswith(("ImageClassification", "WithTeacher"))
        assert cost.count_parameters(ours.spec) == sum(parameter.numel() for parameter in ours.parameters())
        given = pixels(ours.spec, 2)
        with torch.no_grad():
            expected, tokens = reference(theirs, case, given)
            for built in (ours, freeze(ours), freeze(freeze(ours))):
                outputs = built.outputs(given)
                main = built(given)
                assert main.shape == expected.shape
                assert (main - expected).abs().max() <= SHARE * expected.std()
                assert torch.equal(main, outputs[built.spec.output])
                assert (outputs["tokens"] - tokens).abs().max() <= SHARE * tokens.std()


@pytest.mark.parametrize("name", ["ViTForImageClassification", "Dinov2Model", "DINOv3ViTModel-key_bias=True", "SiglipModel"])
def test_a_folder_on_disk_becomes_the_same_model(name: str, tmp_path: Path) -> None:
    theirs, folder = build(CASES[name]), tmp_path / "my_model"
    saved(theirs, folder)
    (folder / "preprocessor_config.json").write_text('{"size": {"height": 32, "width": 32}, "do_center_crop": false}')
    loaded = load(folder)
    assert (loaded.spec.name, loaded.origin["source"]) == ("my_model", SOURCE.name)
    ours = safetensors.assemble(loaded.spec, loaded.state, loaded.grid)
    given = pixels(ours.spec, 2)
    with torch.no_grad():
        expected, _ = reference(theirs, CASES[name], given)
        assert (ours(given) - expected).abs().max() <= SHARE * expected.std()


def test_every_supported_class_is_compared() -> None:
    known = {architecture for family in FAMILIES.values() for architecture in family.architectures}
    assert known == {case.architecture for case in HUGGINGFACE}


OLD_BUFFERS = {  # in old checkpoints of the hub, no longer in transformers 5
    "CLIPVisionModel": ("vision_model.embeddings.position_ids", torch.arange(17)[None].float()),
    "SiglipVisionModel": ("vision_model.embeddings.position_ids", torch.arange(16)[None].float()),
    "BeitModel": (
        "encoder.layer.1.attention.attention.relative_position_bias.relative_position_index",
        torch.zeros(17, 17),
    ),
    "DINOv3ViTModel": ("rope_embeddings.inv_freq", torch.zeros(4)),
}


@pytest.mark.parametrize("architecture", OLD_BUFFERS)
def test_old_buffers_and_prefixes_are_known(architecture: str, tmp_path: Path) -> None:
    case = next(case for case in HUGGINGFACE if case.architecture == architecture)
    state, config = saved(build(case), tmp_path)
    if case.family in ("CLIP", "SigLIP"):  # transformers 4 had one module more
        state = {f"vision_model.{name}": tensor for name, tensor in state.items()}
    name, buffer = OLD_BUFFERS[architecture]
    _, left_out = assembled(checkpoint({**state, name: buffer}, config, (32, 32)))
    assert name in left_out


@pytest.mark.parametrize("architecture", ["CLIPVisionModelWithProjection", "CLIPModel"])
def test_a_projection_gives_an_embedding(architecture: str, tmp_path: Path) -> None:
    case = next(case for case in HUGGINGFACE if case.architecture == architecture)
    state, config = saved(build(case), tmp_path)
    spec = SOURCE.spec(checkpoint(state, {**config, "id2label": {str(index): "cat" for index in range(24)}}), None)
    assert (spec.head, spec.output, spec.classes, spec.labels) == ("projection", "embedding", 24, ())


def test_what_is_left_out_says_why(tmp_path: Path) -> None:
    state, config = saved(build(CASES["ViTModel"]), tmp_path)
    _, left_out = assembled(checkpoint(state, config))
    assert left_out.keys() == {"pooler.dense.weight", "pooler.dense.bias"}
    assert "tanh" in left_out["pooler.dense.weight"]


def test_distances_are_counted_and_resampled_as_by_transformers() -> None:
    beit = (transformers(), importlib.import_module("transformers.models.beit.modeling_beit"))[1]
    module = beit.BeitRelativePositionBias(beit.BeitConfig(**SMALL))
    with torch.no_grad():
        module.relative_position_bias_table.normal_()
        spec = SOURCE.spec(checkpoint(*plain("beit", use_relative_position_bias=True), (40, 24)), None)
        bias = RelativeBias(spec)
        bias.relative_position_bias_table.copy_(relative.resample(module.relative_position_bias_table, (4, 4), spec))
        assert torch.allclose(bias.gather(), module((5, 3)), atol=1e-6)


REFUSED = [
    ("vit", {"hidden_act": "selu"}, "hidden_act = 'selu'"),
    ("vit", {"hidden_act": ["gelu"]}, "hidden_act"),
    ("vit", {"hidden_size": "64"}, "hidden_size = '64', which is no number"),
    ("vit", {"hidden_size": 64.5}, "no whole number"),
    ("vit", {"layer_norm_eps": float("nan")}, "layer_norm_eps"),
    ("vit", {"image_size": [32, 32, 3]}, "image_size"),
    ("vit", {"patch_size": 0}, "patch_size"),
    ("vit", {"qkv_bias": "yes"}, "qkv_bias"),
    ("vit", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ("vit", {"quantization_config": {"quant_method": "x"}}, "quantised"),
    ("vit", {"architectures": ["ViTForSomethingElse"]}, "ViTForSomethingElse"),
    ("vit", {"architectures": "ViTModel"}, "architectures"),
    ("swin", {}, "model_type = 'swin'"),
    ("siglip2", {}, "model_type = 'siglip2'"),
    ("dinov3_vit", {"rope_theta": 10.0}, "rope_theta = 10.0"),
    ("dinov3_vit", {"proj_bias": False}, "proj_bias = False"),
    ("dinov3_vit", {"mlp_bias": False}, "mlp_bias = False"),
    ("dinov3_vit", {"value_bias": False}, "value_bias = False"),
    ("dinov3_vit", {"use_gated_mlp": True}, "hidden_act = 'gelu'"),
    ("beit", {"use_relative_position_bias": True, "use_shared_relative_position_bias": True}, "use_shared"),
]


@pytest.mark.parametrize(("kind", "options", "named"), REFUSED, ids=[f"{kind}-{named[:24]}" for kind, _, named in REFUSED])
def test_what_is_not_supported_is_named(kind: str, options: dict[str, Any], named: str) -> None:
    given = checkpoint({"a": torch.zeros(1), "b": torch.zeros(1)}, {"model_type": kind, **SMALL, **options}, (32, 32))
    assert recognise(given)
    with pytest.raises(InputError) as caught:
        SOURCE.spec(given, None)
    assert caught.value.code == "VD3015"
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "config", [{}, {"model_type": "timm_wrapper"}, {"architecture": "vit_tiny_patch16_224"}, {"model_type": 3}]
)
def test_others_are_not_recognised(config: dict[str, Any]) -> None:
    assert not recognise(checkpoint({}, config))


@pytest.mark.parametrize(
    ("given", "classes", "problem", "task"),
    [
        (None, 3, "single_label", "single_label"),
        ("single_label_classification", 3, "single_label", "single_label"),
        ("multi_label_classification", 3, "multi_label", "multi_label"),
        ("regression", 3, "regression", "regression"),
        (None, 1, "single_label", "regression"),
        ("multi_label_classification", 1, "multi_label", "multi_label"),
        ("multi_label_classification", 0, "single_label", "embedding"),
    ],
)
@pytest.mark.parametrize("kind", ["vit", "dinov2", "siglip"])
def test_what_the_head_says_is_read(kind: str, given: str | None, classes: int, problem: str, task: str) -> None:
    state, config = plain(kind, problem_type=given)
    if kind == "siglip":
        config = {**config, "vision_config": {name: value for name, value in config.items() if name != "problem_type"}}
    if classes:
        state["classifier.weight"] = torch.zeros(classes, 32)
    spec = SOURCE.spec(checkpoint(state, config), None)
    assert (spec.problem, spec.task) == (problem, task)


@pytest.mark.parametrize("given", ["ranking", 3, ["regression"]])
def test_a_head_that_says_something_else_is_refused(given: object) -> None:
    state, config = plain(problem_type=given)
    state["classifier.weight"] = torch.zeros(3, 32)
    with pytest.raises(InputError, match="problem_type") as caught:
        SOURCE.spec(checkpoint(state, config), None)
    assert caught.value.code == "VD3015"


def test_labels_and_heads() -> None:
    state, config = plain()
    state |= {"classifier.weight": torch.zeros(3, 64), "classifier.bias": torch.zeros(3)}

    def read(table: Any) -> tuple[int, tuple[str, ...]]:
        spec = SOURCE.spec(checkpoint(state, {**config, "id2label": table}), None)
        return spec.classes, spec.labels

    assert read({"1": "dog", "0": "cat", "2": "cow"}) == (3, ("cat", "dog", "cow"))
    assert read({0: "cat", 1: "dog", 2: "cow"}) == (3, ("cat", "dog", "cow"))
    for nothing in (
        {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
        {"0": "cat", "1": "dog"},
        {"0": 1, "1": 2, "2": 3},
        [],
        None,
    ):
        assert read(nothing) == (3, ()), nothing
    del state["classifier.weight"]
    assert SOURCE.spec(checkpoint(state, config), None).head == "none"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("models/my_vit", "my_vit"),
        ("models/my_vit/model.safetensors", "my_vit"),
        ("hub/models--google--vit-base/snapshots/0a1b", "vit-base"),
    ],
)
def test_a_model_has_its_folders_name(path: str, name: str) -> None:
    found = checkpoint(*plain())._replace(path=Path(path))
    assert SOURCE.spec(found, None).name == name
    assert SOURCE.spec(found, "mine").name == "mine"


def test_a_resampled_table_counts_more_than_the_configuration() -> None:
    state, config = plain()
    assert SOURCE.grid(checkpoint(state, config)) == (4, 4)
    state["embeddings.position_embeddings"] = torch.zeros(1, 50, 64)
    assert SOURCE.grid(checkpoint(state, config)) is None


JUNK: list[Any] = [
    *(None, True, -1, 0, 3, 2**70, 1e308, 1e-320, float("nan"), "a", "silu", [], [1], [8, 8], ["a"], [[1]]),
    *({}, {"a": 1}, {"0": "a"}, {"shortest_edge": None}, {"height": 0, "width": 3}, {"height": 8, "width": 8}),
]


@pytest.mark.parametrize("kind", FAMILIES)
def test_configurations_from_outside_end_in_a_spec_or_an_error_of_ours(kind: str) -> None:
    keys = (*FAMILIES[kind].defaults, "architectures", "id2label", "quantization_config", "head_dim", "vision_config")
    for key in keys:
        for value in JUNK:
            state, config = plain(kind, **{key: value})
            state |= {"classifier.weight": torch.zeros(1), "embeddings.position_embeddings": torch.zeros(())}
            given = checkpoint(state, config)
            try:
                SOURCE.rules(given, SOURCE.spec(given, None))
                SOURCE.grid(given)
            except VitdeployError:
                pass
