"""From a checkpoint as people have it to ONNX: the file computes what the source library computes, at two batch sizes."""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import test_clip, test_huggingface, test_jax, test_meta, test_timm, test_torchvision
from tests.checkpoints.cases import pixels
from tests.checkpoints.huggingface_cases import HUGGINGFACE
from tests.checkpoints.test_peers import peer
from tests.checkpoints.timm_cases import CASES as TIMM
from vitdeploy.artifact import Artifact
from vitdeploy.data import images
from vitdeploy.recipe import ExportConfig, ModelConfig
from vitdeploy.verbs.exporter import export

SHARE = 1e-4  # of the standard deviation of what the library gives
QUICK = ExportConfig(prove_batches=(1, 3))
CLASSES = {case.architecture: case for case in HUGGINGFACE}
NAMES = {case.name: case for case in reversed(TIMM)}
FAMILIES = {case.family: case for case in reversed(TIMM)}
PHOTOS, WEIGHTS = os.environ.get("VITDEPLOY_CIFAR10"), os.environ.get("VITDEPLOY_REAL_WEIGHTS")


def close(artifact: Artifact, run) -> None:
    """ONNX Runtime against the library, batch 1 and 3 through the same file."""
    session = onnxruntime.InferenceSession(artifact.model, providers=["CPUExecutionProvider"])
    given = pixels(artifact.spec, 3)
    with torch.no_grad():
        expected = run(given).numpy()
    for batch in (1, 3):
        (output,) = session.run([artifact.spec.output], {"pixels": given[:batch].numpy()})
        assert output.shape == expected[:batch].shape
        assert np.abs(output - expected[:batch]).max() <= SHARE * expected.std()


@pytest.mark.sampled(30)
@pytest.mark.parametrize("architecture", CLASSES)
def test_hugging_face_folder(architecture, tmp_path) -> None:
    """Every class, its folder as `save_pretrained` writes it, at another size where there is one: sizes change no operator."""
    case = CLASSES[architecture]
    theirs = test_huggingface.build(case)
    test_huggingface.saved(theirs, tmp_path / "model")
    size = case.sizes[:2][-1]
    artifact = export(ModelConfig(source=str(tmp_path / "model")), size_of(size), tmp_path / "out")
    close(artifact, lambda given: test_huggingface.reference(theirs, case, given)[0])
    assert artifact.record.origin.source == test_huggingface.SOURCE.name


def size_of(size: tuple[int, int]) -> ExportConfig:
    return ExportConfig(prove_batches=(1, 3), image_size=size)


@pytest.mark.sampled(32)
@pytest.mark.parametrize("name", [case.name for case in FAMILIES.values()])
def test_timm_weights_with_the_architectures_name(name, tmp_path) -> None:
    """One architecture of every family, a bare state dict; of one block, `test_timm` holds networks of two to timm."""
    case = NAMES[name]
    theirs = test_timm.created(peer("timm"), case, depth=1)
    if case.sized:
        pytest.skip("has its image size in config.json only; see the test of folders")
    save_file({key: value.contiguous() for key, value in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    artifact = export(ModelConfig(source=name, weights=str(tmp_path / "model.safetensors")), QUICK, tmp_path / "out")
    close(artifact, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", [case.name for case in FAMILIES.values() if case.sized] + ["vit_tiny_patch16_224"])
def test_timm_folder(name, tmp_path) -> None:
    """``config.json`` and weights, as timm puts them on the hub, with the labels."""
    case = NAMES[name]
    theirs = test_timm.created(peer("timm"), case, depth=1)
    side = case.side or 224
    config = {"architecture": name, "pretrained_cfg": {"input_size": [3, side, side], "mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    save_file({key: value.contiguous() for key, value in theirs.state_dict().items()}, tmp_path / "model" / "model.safetensors")
    artifact = export(ModelConfig(source=str(tmp_path / "model")), QUICK, tmp_path / "out")
    assert artifact.spec.input.mean == (0.5, 0.5, 0.5)
    close(artifact, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32", "vit_l_16", "vit_h_14"])
def test_torchvision_state_dict(name, tmp_path) -> None:
    theirs = test_torchvision.created(name, depth=1)
    torch.save(theirs.state_dict(), tmp_path / f"{name}.pth")
    close(export(ModelConfig(source=str(tmp_path / f"{name}.pth")), QUICK, tmp_path / "out"), theirs)


@pytest.mark.slow
def test_jax_arrays(tmp_path) -> None:
    given = test_jax.arrays()
    theirs = test_jax.theirs(given, tmp_path / "timms.npz", act_layer="gelu_tanh")
    np.savez(tmp_path / "B_8.npz", **given)
    close(export(ModelConfig(source=str(tmp_path / "B_8.npz")), QUICK, tmp_path / "out"), theirs)


@pytest.mark.slow
def test_openai_clip_state_dict(tmp_path) -> None:
    theirs = test_clip.tower(test_clip.QuickGELU)
    torch.save(test_clip.prefixed(theirs.state_dict()), tmp_path / "clip.pt")
    config = ModelConfig(source="ViT-B-16-quickgelu", weights=str(tmp_path / "clip.pt"))
    close(export(config, QUICK, tmp_path / "out"), theirs)


@pytest.mark.slow
def test_meta_dinov3(tmp_path) -> None:
    theirs, state = test_meta.dinov3("vit_small_patch16_dinov3_qkvb")
    torch.save(state, tmp_path / "dinov3_vits16_pretrain.pth")
    artifact = export(ModelConfig(source=str(tmp_path / "dinov3_vits16_pretrain.pth")), size_of((96, 96)), tmp_path / "out")
    close(artifact, theirs)


@pytest.mark.slow
@pytest.mark.skipif(
    not WEIGHTS or not PHOTOS, reason="VITDEPLOY_REAL_WEIGHTS and VITDEPLOY_CIFAR10 name no trained weights and photos"
)
@pytest.mark.parametrize(("folder", "kind"), [("dinov2_vits14", "Dinov2Model"), ("clip_vitb16", "CLIPVisionModelWithProjection")])
def test_trained_weights_on_photos(folder, kind, tmp_path) -> None:
    """From photo files to features: our preparation and ONNX Runtime against transformers' processor and model."""
    transformers = peer("transformers")
    source = Path(WEIGHTS) / folder
    theirs = getattr(transformers, kind).from_pretrained(source).eval()
    processor = transformers.BitImageProcessorPil.from_pretrained(source)
    photos = sorted(Path(PHOTOS).glob("test/*/*.jpg"))[::250]
    assert len(photos) == 8
    from PIL import Image

    with torch.no_grad():
        given = processor([Image.open(path).convert("RGB") for path in photos], return_tensors="pt")["pixel_values"]
        out = theirs(given)
        expected = (out.image_embeds if kind.startswith("CLIP") else out.last_hidden_state[:, 0]).numpy()
    artifact = export(ModelConfig(source=str(source)), QUICK, tmp_path / "out")
    contract = artifact.spec.input
    ours = images.to_tensor(np.stack([images.load(path, contract) for path in photos]), contract)
    assert np.abs(ours - given.numpy()).max() <= 1e-5
    session = onnxruntime.InferenceSession(artifact.model, providers=["CPUExecutionProvider"])
    (output,) = session.run([artifact.spec.output], {"pixels": ours})
    assert np.abs(output - expected).max() <= SHARE * expected.std()
