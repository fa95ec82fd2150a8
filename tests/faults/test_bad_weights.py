"""Every kind of bad weights: refused before anything is loaded, with code, exit status 3, the file and the way out."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from tests.checkpoints.cases import contract, shaken, spec
from vitdeploy.checkpoints import safetensors
from vitdeploy.checkpoints.safetensors import rebuild
from vitdeploy.errors import InputError
from vitdeploy.models.vit import build

GOOD = shaken(spec()).state_dict()
BYTES = save(GOOD)
HEADER = 8 + int.from_bytes(BYTES[:8], "little")


def check(caught: pytest.ExceptionInfo[InputError], code: str, says: str, file: Path | None) -> None:
    error, line = caught.value, str(caught.value)
    assert error.code == code
    assert error.exit_code == 3
    assert error.file == (None if file is None else str(file))
    assert "\n" not in line
    assert re.search(says, line), line


def raw(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def described(name: str, start: int, end: int, shape: list[int], kind: str = "F32") -> str:
    return f'"{name}": ' + json.dumps({"dtype": kind, "shape": shape, "data_offsets": [start, end]})


TWICE = raw(("{" + described("head.bias", 0, 4, [1]) + ", " + described("head.bias", 4, 8, [1]) + "}").encode(), b"\0" * 8)
MANY = json.dumps({f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(20_001)}).encode()
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a2146" * 8 + b"\nsize 12345\n"

FILES: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "VD3002", "is empty; download or write it again"),
    "git-lfs": (LFS, "VD3003", "is a git-lfs pointer, not the file itself; run: git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html><body>Log in</body></html>", "VD3004", "is an HTML page; download the file itself"),
    "pickle": (pickle.dumps({"a": 1}, protocol=2), "VD3005", "is a Python pickle, expected a safetensors file"),
    "text": (b"epoch 1 loss 0.3\n", "VD3005", "is a text file, expected a safetensors file"),
    "noise": (bytes(range(255, 0, -1)), "VD3005", "is of an unknown kind, expected a safetensors file"),
    "cut in the first bytes": (BYTES[:5], "VD3005", "expected a safetensors file"),
    "cut in the header": (
        BYTES[: HEADER // 2],
        "VD3006",
        "is cut off: .* bytes, the header alone needs .*; download or write",
    ),
    "cut behind the header": (BYTES[:HEADER], "VD3006", "is damaged: .*; download or write it again"),
    "cut in the body": (BYTES[:-7], "VD3006", "is damaged: .*; download or write it again"),
    "too long": (BYTES + b"\0" * 16, "VD3006", "is damaged"),
    "header is no JSON": (raw(b'{"head.bias": ' + b"x" * 20), "VD3006", "has an unreadable header"),
    "header is no text": (raw(b'{"\xff\xfe": {}}'), "VD3006", "has an unreadable header"),
    "header is deep": (raw(b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "VD3006", "unreadable header"),
    "offsets beyond the end": (raw(("{" + described("a", 0, 400, [100]) + "}").encode(), b"\0" * 8), "VD3006", "is damaged"),
    "offsets and shape differ": (raw(("{" + described("a", 0, 8, [9]) + "}").encode(), b"\0" * 8), "VD3006", "is damaged"),
    "unknown type": (raw(("{" + described("a", 0, 8, [2], "F99") + "}").encode(), b"\0" * 8), "VD3006", "is damaged"),
    "name twice": (TWICE, "VD3007", "names the tensor 'head.bias' twice in its header; write it again"),
    "length bomb": ((1 << 36).to_bytes(8, "little") + b'{"a": 1}', "VD3013", "has a header of 68,719,476,736 bytes"),
    "length bomb of 64 bits": (b"\xff" * 8 + b'{"a": 1}', "VD3005", "expected a safetensors file"),
    "too many names": (raw(MANY), "VD3013", "names 20,001 tensors, at most 20,000 are read"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_file(name: str, tmp_path: Path) -> None:
    content, code, says = FILES[name]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        safetensors.read(path)
    check(caught, code, says, path)


def test_a_torch_checkpoint_is_named_and_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    torch.save(GOOD, path)
    with pytest.raises(InputError) as caught:
        safetensors.read(path)
    check(caught, "VD3005", r"is a zip archive \(a PyTorch .pt file\?\), expected a safetensors file", path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        safetensors.read(tmp_path / "none.safetensors")
    check(caught, "VD3001", "can't be read: No such file", tmp_path / "none.safetensors")
    with pytest.raises(InputError) as caught:
        safetensors.read(tmp_path)
    check(caught, "VD3001", "is a folder, expected a file", tmp_path)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(value: float, kind: torch.dtype, tmp_path: Path) -> None:
    state = {name: tensor.to(kind, copy=True) for name, tensor in GOOD.items()}
    state["blocks.1.mlp.fc1.weight"][3, 4:6] = value
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    with pytest.raises(InputError) as caught:
        safetensors.read(path)
    check(caught, "VD3008", "'blocks.1.mlp.fc1.weight' has 2 values of 1,536 that are NaN or infinite; use a checkpoint", path)


def test_float64_beyond_float32_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"head.bias": torch.tensor([1e300], dtype=torch.float64)}, path)
    with pytest.raises(InputError) as caught:
        safetensors.read(path)
    check(caught, "VD3008", "'head.bias' has 1 values of 1", path)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_with_nan(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"head.bias": torch.tensor([1.0, float("nan")]).to(getattr(torch, kind))}, path)
    with pytest.raises(InputError) as caught:
        safetensors.read(path)
    check(caught, "VD3008", "'head.bias' has 1 values of 2", path)


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_not_floating_point(kind: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({**GOOD, "head.bias": torch.ones(5).to(kind)}, path)
    with pytest.raises(InputError) as caught:
        safetensors.read(path)
    check(caught, "VD3009", f"'head.bias' is of type {str(kind)[6:]}, weights are floating-point numbers; save", path)


def without(*names: str) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        for name in names:
            del state[name]

    return change


def more(count: int) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.update({f"extra.{n}": torch.zeros(1) for n in range(count)})


def shaped(name: str, *shape: int) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.update({name: torch.zeros(shape)})


MISFITS: list[tuple[Callable[[dict[str, Tensor]], None], str]] = [
    (without("cls_token"), r"1 missing \(cls_token\); check that model and weights belong together"),
    (without("head.weight", "head.bias"), r"2 missing \(head.bias, head.weight\)"),
    (
        without(*[name for name in GOOD if name.startswith("blocks.1.")]),
        r"12 missing \(blocks.1.attn.proj.bias, .*, \.\.\.\)",
    ),
    (more(1), r"1 unexpected \(extra.0\)"),
    (more(7), r"7 unexpected \(extra.0, extra.1, extra.2, extra.3, extra.4, \.\.\.\)"),
    (more(5), r"5 unexpected \(extra.0, extra.1, extra.2, extra.3, extra.4\)"),
    (shaped("head.weight", 9, 32), r"1 mis-shaped \(head.weight \[9, 32\] instead of \[5, 32\]\)"),
    (shaped("cls_token", 32), r"1 mis-shaped \(cls_token \[32\] instead of \[1, 1, 32\]\)"),
    (shaped("pos_embed", 17, 32), r"1 mis-shaped \(pos_embed \[17, 32\] instead of \[1, 17, 32\]\)"),
    (shaped("pos_embed", 1, 14, 32), r"1 mis-shaped \(pos_embed \[1, 14, 32\] instead"),  # 13 patches are no square
    (shaped("pos_embed", 1, 0, 32), r"1 mis-shaped \(pos_embed \[1, 0, 32\] instead"),
    (shaped("pos_embed", 1, 50, 16), r"1 mis-shaped \(pos_embed \[1, 50, 16\] instead"),
    (shaped("pos_embed", 2, 50, 32), r"1 mis-shaped \(pos_embed \[2, 50, 32\] instead"),
    (shaped("patch_embed.proj.weight", 32, 1, 8, 8), r"1 mis-shaped \(patch_embed.proj.weight \[32, 1, 8, 8\] instead"),
    (shaped("patch_embed.proj.weight", 192, 32), r"1 mis-shaped \(patch_embed.proj.weight \[192, 32\] instead"),
]


@pytest.mark.parametrize(("change", "says"), MISFITS, ids=[says[:40] for _, says in MISFITS])
def test_misfit_names_the_first_five(change: Callable[[dict[str, Tensor]], None], says: str, tmp_path: Path) -> None:
    state = dict(GOOD)
    change(state)
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    model = build(spec())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        safetensors.fill(model, safetensors.read(path), file=path)
    check(caught, "VD3009", "does not fit the model 'case': .*" + says, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # nothing in part


def test_all_kinds_of_misfit_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({**GOOD, "module.x": torch.zeros(1)}, path)
    other = spec(depth=3, classes=7)
    with pytest.raises(InputError) as caught:
        rebuild(other, path)
    check(caught, "VD3009", r"12 missing .*; 1 unexpected \(module.x\); 2 mis-shaped \(head.bias", path)


@pytest.mark.parametrize("shape", [(32, 31), (32,), ()], ids=str)
@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_separate_projections_that_do_not_belong_together(part: str, shape: tuple[int, ...]) -> None:
    state = {name: value for name, value in GOOD.items() if name != "blocks.0.attn.qkv.weight"}
    state |= {f"blocks.0.attn.{name}.weight": torch.zeros(32, 32) for name in "qkv"}
    state[f"blocks.0.attn.{part}.weight"] = torch.zeros(shape)
    with pytest.raises(InputError) as caught:
        safetensors.fill(build(spec()), state)
    check(caught, "VD3009", "blocks.0.attn", None)


def test_projections_without_a_shape() -> None:
    state = {name: value for name, value in GOOD.items() if name != "blocks.0.attn.qkv.weight"}
    with pytest.raises(InputError) as caught:
        safetensors.fill(build(spec()), state | {f"blocks.0.attn.{name}.weight": torch.zeros(()) for name in "qkv"})
    check(caught, "VD3009", "3 unexpected", None)


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_a_projection_that_is_missing(part: str) -> None:
    state = {name: value for name, value in GOOD.items() if name != "blocks.0.attn.qkv.weight"}
    state |= {f"blocks.0.attn.{name}.weight": torch.zeros(32, 32) for name in "qkv" if name != part}
    with pytest.raises(InputError) as caught:
        safetensors.fill(build(spec()), state)
    check(caught, "VD3009", r"1 missing \(blocks.0.attn.qkv.weight\); 2 unexpected", None)


def test_weights_of_another_patch(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(GOOD, path)
    with pytest.raises(InputError) as caught:
        rebuild(spec(patch=(4, 16), input=contract(32, 64)), path)  # as many numbers in another order
    check(caught, "VD3009", r"patch_embed.proj.weight \[32, 3, 8, 8\] instead of \[32, 3, 4, 16\]", path)
