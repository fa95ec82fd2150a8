"""PyTorch in float32 and bfloat16: the same network, and really what the settings say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import cases
from vitdeploy.artifact import Artifact, Record
from vitdeploy.backends import table
from vitdeploy.backends.base import OpenConfig
from vitdeploy.data import images, synthetic
from vitdeploy.errors import UsageError
from vitdeploy.models.vit import build


@pytest.fixture
def tensor(tiny_artifact, tiny_pixels):
    return images.to_tensor(tiny_pixels, tiny_artifact.spec.input)


def opened(artifact, **settings):
    return table.load("pytorch").open(artifact, OpenConfig(threads=1, **settings))


def logits(artifact, tensor, **settings):
    return opened(artifact, **settings).run(tensor)[artifact.spec.output]


def original_of(spec, folder: Path) -> Artifact:
    """An artifact with nothing but its original: what this backend reads."""
    save_file(build(spec).state_dict(), folder / "original.safetensors")
    return Artifact(folder, Record(spec=spec, weights="original.safetensors", made_by="test"))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"precision": "f16"}, "f16"),
        ({"hint": "latency"}, "hint"),
        ({"streams": 1}, "streams"),
        ({"spin": False}, "spin"),
        ({"arena": True}, "arena"),
        ({"graph": False}, "graph"),
        ({"device": "cuda"}, "cuda"),
    ],
)
def test_a_setting_that_pytorch_has_not_is_refused(tiny_artifact, settings, word):
    with pytest.raises(UsageError, match=word) as caught:
        opened(tiny_artifact, **settings)
    assert caught.value.code == "VD2011"
    assert caught.value.fix


def test_the_usual_way_is_eager_float32(tiny_artifact, tensor):
    runner = opened(tiny_artifact)
    assert runner.settings["precision"] == "fp32"
    np.testing.assert_array_equal(runner.run(tensor)["logits"], logits(tiny_artifact, tensor, precision="f32"))


def test_bfloat16_is_close_and_says_so(tiny_artifact, tensor):
    runner, truth = opened(tiny_artifact, precision="bf16"), logits(tiny_artifact, tensor)
    rows = runner.run(tensor)["logits"]
    assert runner.settings["precision"] == "bf16"
    assert "autocast" in runner.settings["bf16"]
    assert rows.dtype == np.float32
    difference = np.abs(rows - truth).max() / truth.std()
    assert 1e-4 < difference < 0.1  # bfloat16 has 8 bits: not the same, and not another network


def test_bfloat16_multiplies_in_bfloat16_only(tiny_artifact, tensor):
    """Float32 products would be slow in silence, and so would weights that are converted in every run."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen, copied = set(), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default and isinstance(args[0], torch.nn.Parameter) and args[0].ndim > 1:
                copied.append(tuple(args[0].shape))
            if function in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default, torch.ops.aten.convolution.default):
                seen.update(each.dtype for each in args if isinstance(each, torch.Tensor) and each.ndim > 1)
            return function(*args, **(kwargs or {}))

    runner = opened(tiny_artifact, precision="bf16")
    with Watch(), torch.no_grad():
        runner._run(torch.from_numpy(tensor))
    assert seen == {torch.bfloat16}
    assert not copied


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", list(cases.CASES))
def test_bfloat16_runs_every_kind_of_network(name, tmp_path):
    spec = cases.CASES[name]
    artifact = original_of(spec, tmp_path)
    pixels = images.to_tensor(synthetic.pixels(2, spec.input), spec.input)
    rows, truth = logits(artifact, pixels, precision="bf16"), logits(artifact, pixels)
    assert np.abs(rows - truth).max() < 0.1 * max(truth.std(), np.abs(truth).max() / 10)
