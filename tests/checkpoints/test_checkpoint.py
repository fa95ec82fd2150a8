"""Checkpoints of every format and folder give the same float32 tensors under bare names, with digests and notes."""

from __future__ import annotations

import collections
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitdeploy.checkpoints.checkpoint import read
from vitdeploy.checkpoints.families import load
from vitdeploy.errors import InputError

STATE = {
    "patch_embed.proj.weight": torch.randn(8, 3, 4, 4),
    "patch_embed.proj.bias": torch.randn(8),
    "head.weight": torch.randn(5, 8),
    "position_ids": torch.arange(7),
}
CONFIG = {"model_type": "vit", "hidden_size": 8}


def same(found: dict[str, Tensor], expected: dict[str, Tensor], exactly: bool = True) -> bool:
    kinds = all(value.dtype == (torch.float32 if value.is_floating_point() else torch.int64) for value in found.values())
    close = all(
        torch.allclose(found[name].float(), value.float(), atol=0 if exactly else 1e-2) for name, value in expected.items()
    )
    return kinds and close and list(found) == list(expected)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wrapped(state: dict[str, Tensor]) -> dict[str, Any]:
    """What a training script saves."""
    return {
        "model": {f"module.{name}": tensor * 2 for name, tensor in state.items()},
        "model_ema": collections.OrderedDict(state),
        "optimizer": {"state": {0: {"exp_avg": torch.full((3,), float("nan"))}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
        "best": np.float64(0.5),
        "rng": torch.get_rng_state(),
    }


PICKLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "plain": (lambda path: torch.save(STATE, path), ""),
    "before 1.6": (lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False), ""),
    "parameters": (lambda path: torch.save({k: nn.Parameter(v, v.is_floating_point()) for k, v in STATE.items()}, path), ""),
    "trainer's": (lambda path: torch.save(wrapped(STATE), path), "took the averaged weights 'model_ema', not 'model'"),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", PICKLES)
def test_pickles(name: str, tmp_path: Path) -> None:
    write, note = PICKLES[name]
    path = tmp_path / "a.pth"
    write(path)
    contents = read(path)
    assert same(contents.state, STATE)
    assert contents.files == {"a.pth": digest(path)}
    assert (contents.path, contents.config, contents.preprocessor) == (path, {}, {})
    assert bool(contents.notes) == bool(note)
    assert note in " ".join(contents.notes)


@pytest.mark.slow
def test_one_tensor_under_many_names(tmp_path: Path) -> None:
    shared = torch.randn(300, 300)
    state = {f"blocks.{n}.weight": shared for n in range(12)}
    torch.save(state, tmp_path / "a.pth")
    assert same(read(tmp_path / "a.pth").state, state)


def test_preference_and_what_was_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(wrapped(STATE), path)
    contents = read(path, prefer="plain")
    assert same(contents.state, {name: value * 2 for name, value in STATE.items()})
    assert contents.notes == (
        "left out what stood beside the weights: 'best', 'epoch', 'model_ema', 'optimizer', 'rng'",
        "took 'model'; prefer='ema' takes the averaged weights 'model_ema'",
        "stripped 'module.' (DataParallel or an averaged model) from 4 of 4 names",
    )


def test_shared_and_strided_tensors_of_a_pickle(tmp_path: Path) -> None:
    whole = torch.randn(6, 4)
    state = {
        "a": whole,
        "again": whole,
        "turned": whole.T,
        "part": whole[2:4],
        "scalar": torch.tensor(2.0),
        "none": torch.ones(0),
    }
    torch.save(state, tmp_path / "a.pt")
    assert same(read(tmp_path / "a.pt").state, state)


@pytest.mark.parametrize(("kind", "word"), [(torch.float16, "fp16"), (torch.bfloat16, "bf16"), (torch.float64, "float64")])
def test_other_float_types(kind: torch.dtype, word: str, tmp_path: Path) -> None:
    state = {name: value.to(kind) if value.is_floating_point() else value for name, value in STATE.items()}
    save_file(state, tmp_path / "a.safetensors")
    contents = read(tmp_path / "a.safetensors")
    assert same(contents.state, {name: state[name] for name in contents.state})
    assert contents.notes == (f"{word}, read as float32 (3 of 4 tensors)",)


@pytest.mark.slow
def test_half_pickle(tmp_path: Path) -> None:
    torch.save({name: value.half() if value.is_floating_point() else value for name, value in STATE.items()}, tmp_path / "a.bin")
    contents = read(tmp_path / "a.bin")
    assert same(contents.state, STATE, exactly=False)
    assert contents.notes == ("fp16, read as float32 (3 of 4 tensors)",)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save: Callable[..., None], tmp_path: Path) -> None:
    arrays = {
        "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel": np.random.default_rng(0).normal(size=(4, 6)).astype("f4"),
        "embedding/kernel": np.asfortranarray(np.random.default_rng(1).normal(size=(3, 5, 2)).astype("f4")),
        "cls": np.ones((1, 1, 6), ">f4"),
        "half": np.ones(3, "f2"),
        "double": np.ones(3, "f8"),
        "brain": np.array([0x3F80, 0xC000], "u2").view("V2"),
        "step": np.array(7),
    }
    save(tmp_path / "a.npz", **arrays)
    contents = read(tmp_path / "a.npz")
    assert list(contents.state) == list(arrays)
    for name, array in arrays.items():
        if name != "brain":
            assert np.array_equal(contents.state[name].numpy(), array), name
    assert contents.state["brain"].tolist() == [1.0, -2.0]
    assert contents.state["step"].dtype == torch.int64
    assert [note.split(",")[0] for note in contents.notes] == ["fp16", "float64", "bf16"]


def test_npz_of_itself_is_the_only_thing_without_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.isolate.run", lambda *_, **__: pytest.fail("started a child"))
    np.savez(tmp_path / "a.npz", a=np.ones(3, "f4"))
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    assert read(tmp_path / "a.npz").state["a"].tolist() == read(tmp_path / "a.safetensors").state["a"].tolist() == [1, 1, 1]


def huggingface(folder: Path, name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_resize": True}))
    (torch.save if name.endswith(".bin") else save_file)(STATE, folder / name)
    return folder


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_huggingface_folder(name: str, tmp_path: Path) -> None:
    contents = read(huggingface(tmp_path, name))
    assert same(contents.state, {key: STATE[key] for key in contents.state})
    assert (contents.config, contents.preprocessor) == (CONFIG, {"do_resize": True})
    assert contents.files == {key: digest(tmp_path / key) for key in (name, "config.json", "preprocessor_config.json")}
    assert contents.notes == ()


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    huggingface(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never looked at")
    assert read(tmp_path).notes == ("read model.safetensors, not pytorch_model.bin beside it",)


def test_open_clip_folder(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    contents = read(tmp_path)
    assert contents.config == {"model_cfg": {}}
    assert set(contents.files) == {"open_clip_model.safetensors", "open_clip_config.json"}


def test_folder_with_one_file_of_any_name(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "best.safetensors")
    (tmp_path / "log.txt").touch()
    assert read(tmp_path).files.keys() == {"best.safetensors"}


def sharded(folder: Path, kind: str = "safetensors") -> Path:
    names = list(STATE)
    stem, save = ("model", save_file) if kind == "safetensors" else ("pytorch_model", torch.save)
    shards = {f"{stem}-0000{number}-of-00002.{kind}": names[number * 2 - 2 : number * 2] for number in (1, 2)}
    for shard, held in shards.items():
        save({name: STATE[name] for name in held}, folder / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(kind: str, tmp_path: Path) -> None:
    contents = read(sharded(tmp_path, kind))
    assert contents.state.keys() == STATE.keys()
    assert same(contents.state, {key: STATE[key] for key in contents.state})
    assert contents.files.keys() == {path.name for path in tmp_path.iterdir()}


def cache(folder: Path) -> Path:
    """The hub's cache of one repository."""
    repository = folder / "models--org--name"
    snapshot = repository / "snapshots" / ("c0ffee" * 6)
    huggingface(snapshot)
    (repository / "blobs").mkdir()
    for path in list(snapshot.iterdir()):
        blob = repository / "blobs" / digest(path)
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, snapshot))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee" * 6)
    return repository


def test_hub_cache(tmp_path: Path) -> None:
    repository = cache(tmp_path)
    snapshot = repository / "snapshots" / ("c0ffee" * 6)
    linked = tmp_path / "current"
    linked.symlink_to(snapshot)
    for path in (repository, snapshot, linked):
        contents = read(path)
        assert contents.path == path
        assert contents.config == CONFIG
        assert contents.files["model.safetensors"] == digest(snapshot / "model.safetensors")
    (repository / "refs" / "main").unlink()
    assert read(repository).config == CONFIG  # the only snapshot


def test_folder_reached_through_a_link(tmp_path: Path) -> None:
    huggingface(tmp_path / "release")
    (tmp_path / "current").symlink_to("release")
    assert read(tmp_path / "current").config == CONFIG


@pytest.mark.slow
def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(STATE, tmp_path / "a.pth")
    monkeypatch.chdir(tmp_path)
    assert same(read(Path("a.pth")).state, STATE)


def test_prefixes_of_safetensors_go(tmp_path: Path) -> None:
    state = {name: value for name, value in STATE.items() if name != "position_ids"} | {"blocks.0.norm1.weight": torch.ones(8)}
    save_file({f"model.{name}": value for name, value in state.items()}, tmp_path / "a.safetensors")
    contents = read(tmp_path / "a.safetensors")
    assert contents.state.keys() == state.keys()
    assert contents.notes == ("stripped 'model.', under which the network stands, from 4 of 4 names",)


def test_a_file_of_no_known_source_beside_its_configuration(tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"encoder\.weight") as caught:
        load(tmp_path / "model.safetensors")
    assert caught.value.code == "VD3014" and "vitdeploy explain VD3014" in caught.value.fix
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(InputError) as caught:
        load(tmp_path / "model.safetensors")
    assert caught.value.fix.endswith(f"give the folder instead: vitdeploy export {tmp_path} -o OUT")


@pytest.mark.slow
def test_two_networks_of_one_file(tmp_path: Path) -> None:
    state = {"patch_embed.proj.weight": torch.ones(8, 3, 4, 4), "blocks.0.norm1.weight": torch.ones(8)}
    both = {f"online.{name}": value for name, value in state.items()} | {
        f"ema.{name}": 2 * value for name, value in state.items()
    }
    torch.save(both, tmp_path / "a.pth")
    save_file(both, tmp_path / "a.safetensors")
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        for prefer, value in ((None, 2.0), ("ema", 2.0), ("plain", 1.0)):
            assert read(path, prefer=prefer).state["blocks.0.norm1.weight"][0] == value


def test_layers_beside_a_network_are_named(tmp_path: Path) -> None:
    state = {"net.patch_embed.proj.weight": torch.ones(8, 3, 4, 4), "net.blocks.0.norm1.weight": torch.ones(8)}
    save_file({**state, "neck.0.weight": torch.ones(3)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"a network under 'net\.', beside layers that are not its own: neck\.0\.weight;"):
        load(tmp_path / "a.safetensors")
