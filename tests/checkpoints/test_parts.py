"""Heads that a network keeps apart: exported by a mapping, the file is the function of the code they came from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vitdeploy.artifact import Artifact
from vitdeploy.checkpoints import mapping
from vitdeploy.errors import InputError, UsageError
from vitdeploy.recipe import ExportConfig, ModelConfig
from vitdeploy.verbs.exporter import export

CODE = """
import torch
from torch import nn

D, H = 24, 3

class Head(nn.Module):
    def __init__(self, size, out):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(size, out) for _ in range(3))

    def forward(self, x, y):
        q, k, v = self.query(y), self.key(y), self.value(y)
        return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v

class Block(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form
        size = D if form == "full" else D // H
        self.heads = nn.ModuleList(Head(size, size) for _ in range(1 if form == "shared" else H))
        self.before, self.between = nn.LayerNorm(D), nn.LayerNorm(D)
        self.out, self.up, self.down = nn.Linear(size * H, D), nn.Linear(D, 32), nn.Linear(32, D)

    def forward(self, x):
        y = self.before(x)
        if self.form == "full":
            mixed = [head(x, y) for head in self.heads]
        else:
            own = y.chunk(H, -1)
            mixed = [self.heads[i % len(self.heads)](x, own[i]) for i in range(H)]
        x = x + self.out(torch.cat(mixed, -1))
        return x + self.down(nn.functional.gelu(self.up(self.between(x))))

class Net(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.cut, self.places = nn.Conv2d(3, D, 8, 8), nn.Parameter(torch.randn(1, 6, D))
        self.blocks = nn.Sequential(Block(form), Block(form))
        self.last, self.classify = nn.LayerNorm(D), nn.Linear(D, 7)

    def forward(self, images):
        x = self.blocks(self.cut(images).flatten(2).transpose(1, 2) + self.places)
        return self.classify(self.last(x).mean(1))

def build(form):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = Net(form).eval()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return net

def full(): return build("full")
def own(): return build("own")
def shared(): return build("shared")
"""
RENAME = r"""
[spec]
name = "apart"
patch = [8, 8]
width = 24
depth = 2
heads = 3
HEAD_WIDTH
mlp_width = 32
norm_eps = 1e-5
class_token = false
pool = "mean"
classes = 7
input = { height = 16, width = 24, resize = "stretch" }
[rename]
'cut\.(\w+)' = 'patch_embed.proj.\1'
'places' = 'pos_embed'
'blocks\.(\d)\.before\.(\w+)' = 'blocks.\1.norm1.\2'
'blocks\.(\d)\.between\.(\w+)' = 'blocks.\1.norm2.\2'
'blocks\.(\d)\.out\.(\w+)' = 'blocks.\1.attn.proj.\2'
'blocks\.(\d)\.up\.(\w+)' = 'blocks.\1.mlp.fc1.\2'
'blocks\.(\d)\.down\.(\w+)' = 'blocks.\1.mlp.fc2.\2'
'last\.(\w+)' = 'norm.\1'
'classify\.(\w+)' = 'head.\1'
"""
STACK = r"""
'blocks\.(\d)\.heads\.(\d)\.query\.(\w+)' = 'blocks.\1.attn.q.\3[\2]'
'blocks\.(\d)\.heads\.(\d)\.key\.(\w+)' = 'blocks.\1.attn.k.\3[\2]'
'blocks\.(\d)\.heads\.(\d)\.value\.(\w+)' = 'blocks.\1.attn.v.\3[\2]'
"""
BLOCKS = "[change]\n'.*\\.attn\\.[qkv]\\.(weight|bias)' = \"blocks\"\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "heads_apart.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def state(form: str) -> dict[str, torch.Tensor]:
    made: dict[str, object] = {}
    exec(CODE, made)
    return made["build"](form).state_dict()


def write(folder: Path, form: str, text: str) -> ModelConfig:
    width = "head_width = 24" if form == "full" else ""
    (folder / "mapping.toml").write_text(RENAME.replace("HEAD_WIDTH", width) + text)
    save_file(state(form), folder / "weights.safetensors")
    return ModelConfig(source="mapping.toml", weights="weights.safetensors")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("form", ["full", "own", "shared"])
def test_heads_apart_are_the_function_of_their_code(form, project) -> None:
    stack = STACK if form != "shared" else STACK.replace("[\\2]", "")
    model = write(project, form, stack + ("" if form == "full" else BLOCKS))
    proof = export(model, ExportConfig(prove_batches=(1, 2)), "out", against=f"heads_apart.py:{form}")
    assert proof.record.proof.against[f"heads_apart.py:{form}"] <= 1e-4
    spec = Artifact.open(project / "out").spec
    assert (spec.heads, spec.head_size) == (3, 24 if form == "full" else 8)


def test_one_tensor_for_all_heads_is_laid_in_blocks(project) -> None:
    """[h, d, d] and [h, d], as an Einsum over heads wants them."""
    apart = state("own")
    joined = {name: tensor for name, tensor in apart.items() if ".heads." not in name}
    joined |= {
        name.replace(".heads.0.", "."): torch.stack([apart[name.replace(".heads.0.", f".heads.{i}.")] for i in range(3)])
        for name in apart
        if ".heads.0." in name
    }
    text = r"'blocks\.(\d)\.query\.(\w+)' = 'blocks.\1.attn.q.\2'" + "\n"
    text += r"'blocks\.(\d)\.key\.(\w+)' = 'blocks.\1.attn.k.\2'" + "\n" + r"'blocks\.(\d)\.value\.(\w+)' = 'blocks.\1.attn.v.\2'"
    write(project, "own", text + "\n" + BLOCKS)
    made = mapping.load(project / "mapping.toml", joined).converted.state
    write(project, "own", STACK + BLOCKS)
    expected = mapping.load(project / "mapping.toml", apart).converted.state
    assert made.keys() == expected.keys() and all(torch.equal(made[name], expected[name]) for name in made)


def load(project: Path, form: str, text: str, given: dict[str, torch.Tensor] | None = None) -> None:
    write(project, form, text)
    mapping.load(project / "mapping.toml", given or state(form))


MISTAKES = {
    "two of one name": ("full", STACK.replace("[\\2]", ""), r"two tensors the name 'blocks\.0\.attn\.q\.weight'.*\[\\2\]"),
    "no blocks": (
        "own",
        STACK,
        r"shape \[24, 8\]: weights of a head for its own 8 channels, not for all 24; add under \[change\]",
    ),
    "shared without blocks": ("shared", STACK.replace("[\\2]", ""), r"shape \[8, 8\]: weights of a head for its own 8 channels"),
    "packed": ("full", STACK.replace("attn.q.", "attn.qkv."), r"stack attn\.q, attn\.k and attn\.v, each on its own"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_say_what_works(name, project) -> None:
    form, text, says = MISTAKES[name]
    with pytest.raises(InputError, match=says) as caught:
        load(project, form, text)
    assert caught.value.code == "VD3009" and "\n" not in str(caught.value)


def test_the_advised_change_maps_them(project) -> None:
    with pytest.raises(InputError) as caught:
        load(project, "own", STACK)
    line = str(caught.value.fix).removeprefix("add under [change]: ")
    load(project, "own", f"{STACK}[change]\n{line}\n")


def test_parts_that_are_missing_or_differ(project) -> None:
    given = state("full")
    gap = {name: tensor for name, tensor in given.items() if ".heads.1." not in name}
    with pytest.raises(InputError, match=r"of the parts 0, 2, some are missing"):
        load(project, "full", STACK, gap)
    given["blocks.0.heads.1.query.weight"] = torch.ones(5, 24)
    with pytest.raises(InputError, match=r"different shapes: \[5, 24\], \[24, 24\]"):
        load(project, "full", STACK, given)


def test_whole_heads_are_no_blocks(project) -> None:
    write(project, "own", STACK + BLOCKS)
    with pytest.raises(
        InputError, match=r"lays 'blocks\.0\.attn\.q\.weight' of shape \[72, 24\] in blocks; 3 heads of 8 channels"
    ):
        mapping.load(project / "mapping.toml", state("full"))


def test_a_change_that_is_misspelt_is_told(project) -> None:
    with pytest.raises(UsageError, match="did you mean 'blocks'"):
        load(project, "own", STACK + BLOCKS.replace('"blocks"', '"block"'))
