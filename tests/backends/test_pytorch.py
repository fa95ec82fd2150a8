"""PyTorch in bfloat16 and through torch.compile: the same network, and really what the settings say."""

import os
import shutil
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
from vitdeploy.errors import MachineError, UsageError
from vitdeploy.models.vit import build

compiles = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++, which is not installed")


@pytest.fixture
def tensor(tiny_artifact, tiny_pixels):
    return images.to_tensor(tiny_pixels, tiny_artifact.spec.input)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of its own for torch.compile, so that nothing compiled before is found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Artifact:
    """One block: C++ compilers are slow."""
    return original_of(cases.spec("small", depth=1), tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def pixels(small) -> np.ndarray:
    """float32 [3, C, H, W]."""
    return images.to_tensor(synthetic.pixels(3, small.spec.input), small.spec.input)


@pytest.fixture(scope="module")
def compiled(cache, small, pixels):
    """Compiled for batches of 3, without a process that stays behind."""
    before = children()
    runner = opened(small, compiled=True)
    runner.run(pixels)
    assert children() == before
    yield runner
    runner.close()


def opened(artifact, **settings):
    return table.load("pytorch").open(artifact, OpenConfig(threads=1, **settings))


def logits(artifact, tensor, **settings):
    return opened(artifact, **settings).run(tensor)[artifact.spec.output]


def original_of(spec, folder: Path) -> Artifact:
    """An artifact with nothing but its original: what this backend reads."""
    save_file(build(spec).state_dict(), folder / "original.safetensors")
    return Artifact(folder, Record(spec=spec, weights="original.safetensors", made_by="test"))


def children() -> set[str]:
    """Process numbers of what this process has started and not ended; none where the system does not tell."""
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        return set()
    return {child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()}


def names_of_what_ran(runner, tensor) -> set[str]:
    with torch.profiler.profile() as profile:
        runner.run(tensor)
    return {event.name for event in profile.events()}


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
    assert (runner.settings["precision"], runner.settings["compiled"]) == ("fp32", False)
    assert not any("Compiled" in name for name in names_of_what_ran(runner, tensor))
    np.testing.assert_array_equal(runner.run(tensor)["logits"], logits(tiny_artifact, tensor, precision="f32"))


def test_bfloat16_is_close_and_says_so(tiny_artifact, tensor):
    runner, truth = opened(tiny_artifact, precision="bf16"), logits(tiny_artifact, tensor)
    found = runner.run(tensor)["logits"]
    assert runner.settings["precision"] == "bf16"
    assert "autocast" in runner.settings["bf16"]
    assert found.dtype == np.float32
    difference = np.abs(found - truth).max() / truth.std()
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


@pytest.mark.parametrize("name", list(cases.CASES))
def test_bfloat16_runs_every_kind_of_network(name, tmp_path):
    spec = cases.CASES[name]
    artifact = original_of(spec, tmp_path)
    pixels = images.to_tensor(synthetic.pixels(2, spec.input), spec.input)
    found, truth = logits(artifact, pixels, precision="bf16"), logits(artifact, pixels)
    assert np.abs(found - truth).max() < 0.1 * max(truth.std(), np.abs(truth).max() / 10)


@compiles
@pytest.mark.slow
def test_compiled_computes_the_same(compiled, small, pixels):
    found, truth = compiled.run(pixels)["logits"], logits(small, pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, truth, atol=1e-4 * truth.std())
    assert (compiled.settings["precision"], compiled.settings["compiled"]) == ("fp32", True)
    assert "inductor" in compiled.settings["compiler"]
    kept = found.copy()
    compiled.run(pixels[::-1].copy())
    np.testing.assert_array_equal(found, kept)


@compiles
@pytest.mark.slow
def test_no_number_of_batch_sizes_falls_back_to_eager(compiled, small, pixels):
    """PyTorch compiles for so many sizes, and runs the next one as it was written, with a line in a log at most."""
    import torch._dynamo

    with torch._dynamo.config.patch(recompile_limit=1):
        for size in (3, 1, 3):
            truth = logits(small, pixels[:size])
            np.testing.assert_allclose(compiled.run(pixels[:size])["logits"], truth, atol=1e-4 * truth.std())
            assert any("Torch-Compiled Region" in name for name in names_of_what_ran(compiled, pixels[:size]))


@compiles
@pytest.mark.slow
def test_compiled_in_bfloat16(cache, small, pixels):
    runner, truth = opened(small, compiled=True, precision="bf16"), logits(small, pixels)
    found = runner.run(pixels)["logits"]
    assert found.dtype == np.float32
    assert 1e-4 < np.abs(found - truth).max() / truth.std() < 0.1
    assert (runner.settings["precision"], runner.settings["compiled"]) == ("bf16", True)
    assert any("Torch-Compiled Region" in name for name in names_of_what_ran(runner, pixels))
    runner.close()
    runner.close()


@compiles
@pytest.mark.slow
def test_a_compiler_that_fails_is_named_as_the_reason(cache, small, pixels, tmp_path):
    """It answers, and then does not compile: as where Python's headers are missing."""
    from torch._inductor import config

    broken = tmp_path / "g++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exec g++ --version\necho "Python.h: no such file" >&2; exit 1\n')
    broken.chmod(0o755)
    with config.patch({"cpp.cxx": (None, str(broken))}):
        runner = opened(small, compiled=True)
        with pytest.raises(MachineError, match=r"torch.compile: C\+\+ compile error") as caught:
            runner.run(pixels[:2])
    assert caught.value.code == "VD4004"
    assert "Python.h" in str(caught.value.__cause__)


@pytest.mark.parametrize("compiler", ["/nowhere/g++", "false"])
def test_a_missing_compiler_is_one_line(tiny_artifact, compiler):
    from torch._inductor import config

    with config.patch({"cpp.cxx": (None, compiler)}), pytest.raises(MachineError) as caught:
        opened(tiny_artifact, compiled=True)
    assert str(caught.value) == (
        f"error[VD4010] torch.compile needs a C++ compiler; none answers (looked for {compiler}); "
        "install g++, or name a compiler in the variable CXX"
    )
