"""Networks of the user's own code: what is accepted, and what is named when it can't be exported."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch

from vitdeploy.errors import InputError, MachineError, UsageError, VitdeployError
from vitdeploy.models.modules import load_module, take_logits
from vitdeploy.spec import InputContract

CONTRACT = InputContract(height=8, width=12, resize="stretch")
NUMBER = itertools.count()

CODE = """
import sys
import types
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, kind="plain"):
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(3, 5)
        self.drop, self.batch = nn.Dropout(0.5), nn.BatchNorm1d(5)

    def forward(self, x):
        assert x.shape[1:] == (3, 8, 12)
        y = self.batch(self.drop(self.linear(x.mean((2, 3)).to(self.linear.weight.dtype))))
        wrap = {
            "dict": lambda: {"logits": y, "other": 1},
            "object": lambda: types.SimpleNamespace(logits=y),
            "tuple": lambda: (y, x),
            "list": lambda: [y],
            "scores": lambda: {"scores": y, "features": x},
            "nested": lambda: ({"logits": y}, None),
            "token": lambda: y[:, None],
            "pixel": lambda: (y[..., None, None], 0),
            "number": lambda: y[:, :1],
            "empty": lambda: (),
            "nothing": lambda: (None, y),
            "tokens": lambda: torch.stack((y, y), 1),
            "two": lambda: y.reshape(2, 5),
            "class": lambda: y.argmax(-1),
            "classes": lambda: y.argmax(-1, keepdim=True),
            "map": lambda: x,
            "random": lambda: y + torch.rand_like(y),
            "batch": lambda: y - y.mean(0),
            "one": lambda: y[:1],
            "nan": lambda: y / 0 * 0,
            "boom": lambda: y.nonsense,
            "exit": lambda: sys.exit(3),
        }
        return wrap[self.kind]() if self.kind in wrap else y

class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, images, target, *, scale, mask=None):
        return self.net(images) * scale + target

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Decoder()
        self.register_buffer("target", torch.ones(5))

    def forward(self, images):
        return self.inner(images, self.target, scale=2.0)

def plain():
    return Net()

def half():
    return Net().half()

def needs(x):
    return Net()

def text():
    return "no net"

def leave():
    sys.exit("bye")

kinds = "dict object tuple list scores nested token pixel number empty nothing tokens two class classes map random batch one nan"
for kind in (*kinds.split(), "boom", "exit"):
    globals()["give_" + kind] = lambda kind=kind: Net(kind)

ready = Net()
number = 3

class Space:
    class Inner:
        make = staticmethod(plain)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in a package in the current folder, under a name of its own."""
    package = f"user_code_{next(NUMBER)}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "net.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield f"{package}.net"
    for name in [name for name in sys.modules if name.startswith(package)]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["plain", "half", "give_dict", "give_object", "ready", "Net", "Space.Inner.make", "Wrapped"])
def test_accepted(name: str, module: str) -> None:
    path = list(sys.path)
    loaded = load_module(f"{module}:{name}", CONTRACT)
    assert loaded.classes == 5
    assert not loaded.net.training
    assert not any(part.training or parameter.requires_grad for part in loaded.net.modules() for parameter in part.parameters())
    logits = loaded.net(torch.zeros(4, 3, 8, 12))
    assert (logits.shape, logits.dtype) == ((4, 5), torch.float32)
    assert sys.path == path


TAKEN: dict[str, tuple[str, ...]] = {
    "plain": (),
    "dict": (),
    "object": (),
    "tuple": ("takes the first of the 2 that the network returns",),
    "list": ("takes the first of the 1 that the network returns",),
    "scores": ("takes 'scores' of the dict that the network returns",),
    "nested": ("takes the first of the 2 that the network returns",),
    "token": ("drops the axes of length 1 of its output [N, 1, 5]",),
    "pixel": ("takes the first of the 2 that the network returns", "drops the axes of length 1 of its output [N, 5, 1, 1]"),
    "number": (),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_logits_are_taken_from_what_the_network_returns_and_it_is_said(kind: str, module: str) -> None:
    loaded = load_module(f"{module}:give_{kind}" if kind != "plain" else f"{module}:plain", CONTRACT)
    pixels = torch.randn(3, 3, 8, 12)
    network = loaded.net.network
    network.kind = "plain"
    expected = network(pixels)
    network.kind = kind
    assert torch.equal(loaded.net(pixels), expected[:, : loaded.classes])
    assert loaded.classes == (1 if kind == "number" else 5)
    assert loaded.notes == TAKEN[kind]


def test_an_output_of_transformers() -> None:
    outputs = pytest.importorskip("transformers").modeling_outputs
    y = torch.ones(2, 5)
    assert take_logits(outputs.ImageClassifierOutput(logits=y)) == (y, ())
    assert take_logits(outputs.ImageClassifierOutput(loss=torch.ones(()), logits=y)) == (y, ())
    assert take_logits(outputs.BaseModelOutputWithPooling(last_hidden_state=y)).notes == (
        "takes 'last_hidden_state' of the BaseModelOutputWithPooling that the network returns",
    )


def test_a_file_is_named_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FILE.py:FUNCTION, wherever the file is, whatever it is called, with modules of its own beside it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my code-2"
    folder.mkdir()
    beside = f"beside_{next(NUMBER)}"
    (folder / f"{beside}.py").write_text(CODE)
    (folder / "json.py").write_text(
        f"from {beside} import Net\ndef make():\n    from {beside} import plain\n    return plain()\n"
    )
    path, modules = list(sys.path), sys.modules["json"]
    for reference in ("my code-2/json.py:make", f"{folder}/json.py:make", "my code-2/json.py:Net"):
        assert load_module(reference, CONTRACT).classes == 5
    assert sys.path == path and sys.modules["json"] is modules
    (folder / "json.py").write_text("nonsense(")
    with pytest.raises(MachineError, match=r"importing json\.py: .*never closed"):
        load_module("my code-2/json.py:make", CONTRACT)
    for name in [name for name in sys.modules if beside in name or "my_code_2" in name]:
        del sys.modules[name]


REFUSED: dict[str, tuple[str, type[VitdeployError], str, str]] = {
    "no colon": ("{}", UsageError, "VD2012", "package.file:factory"),
    "a file": ("net.py:", UsageError, "VD2012", "package.file:factory"),
    "a path": ("a/b:plain", UsageError, "VD2012", "package.file:factory"),
    "no module": ("user_code_none:plain", UsageError, "VD2012", "no Python module 'user_code_none'"),
    "no file in the package": ("{}x:plain", UsageError, "VD2012", "no Python module"),
    "no name": ("{}:plian", UsageError, "VD2012", "has no 'plian'; did you mean 'plain'"),
    "no function": ("{}:number", UsageError, "VD2012", "is a int, not a function"),
    "no network": ("{}:text", UsageError, "VD2012", "gives a str, not a torch.nn.Module"),
    "arguments": ("{}:needs", MachineError, "VD4004", "the factory .*missing 1 required"),
    "factory exits": ("{}:leave", MachineError, "VD4004", "called sys.exit"),
    "network exits": ("{}:give_exit", MachineError, "VD4004", "called sys.exit"),
    "network fails": ("{}:give_boom", MachineError, "VD4004", "float32 \\[2, 3, 8, 12\\]: .*nonsense"),
    "no such file": ("nowhere.py:make", UsageError, "VD2012", "nowhere.py: does not exist"),
    "three inputs": (
        "{}:Decoder",
        InputError,
        "VD3022",
        r"3 inputs \(images, target, scale\).*keeps target and scale as a buffer",
    ),
    "empty tuple": ("{}:give_empty", InputError, "VD3022", "returns a tuple"),
    "a tuple of nothing": ("{}:give_nothing", InputError, "VD3022", "returns a NoneType"),
    "tokens": ("{}:give_tokens", InputError, "VD3022", "gives \\[2, 2, 5\\] for 2 images"),
    "two images": ("{}:give_two", MachineError, "VD4004", "takes two images and fails on float32 \\[1, 3, 8, 12\\]"),
    "class": ("{}:give_class", InputError, "VD3022", "type int64"),
    "classes": ("{}:give_classes", InputError, "VD3022", "type int64"),
    "image": ("{}:give_map", InputError, "VD3022", "expected \\[2, classes\\]"),
    "one row": ("{}:give_one", InputError, "VD3022", "gives \\[1, 5\\] for 2 images"),
    "random": ("{}:give_random", InputError, "VD3022", "second run"),
    "batch statistics": ("{}:give_batch", InputError, "VD3022", "image alone"),
    "NaN": ("{}:give_nan", InputError, "VD3022", "NaN"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, module: str) -> None:
    reference, kind, code, says = REFUSED[name]
    path = list(sys.path)
    with pytest.raises(kind, match=says) as caught:
        load_module(reference.format(module), CONTRACT)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert sys.path == path


@pytest.mark.parametrize(
    ("code", "error", "says"),
    [
        ("import package_that_nobody_has", "VD4004", "package_that_nobody_has"),
        ("1 / 0", "VD4004", "division by zero"),
        ("def broken(:", "VD4004", "invalid syntax"),
        ("raise SystemExit", "VD4004", "called sys.exit"),
    ],
)
def test_modules_that_fail(code: str, error: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"user_code_{next(NUMBER)}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MachineError, match=says) as caught:
        load_module(f"{name}:make", CONTRACT)
    assert caught.value.code == error
