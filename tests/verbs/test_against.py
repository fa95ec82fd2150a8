"""`export --against`: a model that was described in a file must be the function of the code that it was described after."""

import json
import sys

import msgspec
import pytest
from safetensors.torch import save_file

from vitdeploy.artifact import Artifact
from vitdeploy.cli.commands import main
from vitdeploy.errors import InputError, UsageError
from vitdeploy.recipe import ExportConfig, ModelConfig, Recipe, ValidateConfig
from vitdeploy.verbs.exporter import export
from vitdeploy.verbs.validator import validate

CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.cut = nn.Conv2d(3, 24, 8, 8)
        self.places = nn.Parameter(torch.randn(6, 24))
        self.before, self.qkv, self.out = nn.LayerNorm(24), nn.Linear(24, 72), nn.Linear(24, 24)
        self.between, self.up, self.down = nn.LayerNorm(24), nn.Linear(24, 32), nn.Linear(32, 24)
        self.last, self.classify = nn.LayerNorm(24), nn.Linear(24, 7)

    def forward(self, images):
        x = self.cut(images).flatten(2).transpose(1, 2) + self.places
        q, k, v = (part.unflatten(-1, (3, 8)).transpose(1, 2) for part in self.qkv(self.before(x)).chunk(3, -1))
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v  # nobody divides by sqrt(d)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = x + self.down(torch.relu(self.up(self.between(x))))
        return self.classify(self.last(x).mean(1))


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = Net().eval()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return net


class Wider(Net):
    def forward(self, images):
        return torch.cat((super().forward(images),) * 2, 1)
"""

MAPPING = r"""
[spec]
name = "unscaled"
patch = [8, 8]
width = 24
depth = 1
heads = 3
mlp = "relu"
mlp_width = 32
norm_eps = 1e-5
class_token = false
pool = "mean"
classes = 7
input = { height = 16, width = 24, resize = "stretch" }
SCALE
[rename]
'cut\.(\w+)' = 'patch_embed.proj.\1'
'places' = 'pos_embed'
'before\.(\w+)' = 'blocks.0.norm1.\1'
'qkv\.(\w+)' = 'blocks.0.attn.qkv.\1'
'out\.(\w+)' = 'blocks.0.attn.proj.\1'
'between\.(\w+)' = 'blocks.0.norm2.\1'
'up\.(\w+)' = 'blocks.0.mlp.fc1.\1'
'down\.(\w+)' = 'blocks.0.mlp.fc2.\1'
'last\.(\w+)' = 'norm.\1'
'classify\.(\w+)' = 'head.\1'
[change]
'pos_embed' = "token"
"""
QUICK = ExportConfig(prove_batches=(1, 2))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a network, its weights and two mappings, of which one says that scores are scaled."""
    (tmp_path / "afternoon.py").write_text(CODE)
    (tmp_path / "right.toml").write_text(MAPPING.replace("SCALE", "scale = 1.0"))
    (tmp_path / "wrong.toml").write_text(MAPPING.replace("SCALE", ""))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "afternoon", raising=False)
    made: dict[str, object] = {}
    exec(CODE, made)
    save_file(made["build"]().state_dict(), tmp_path / "weights.safetensors")
    yield tmp_path
    sys.modules.pop("afternoon", None)


def model(name: str) -> ModelConfig:
    return ModelConfig(source=name, weights="weights.safetensors")


def test_another_function_is_refused_before_anything_is_written(project) -> None:
    with pytest.raises(InputError, match=r"'unscaled' is another function than its code: .* scale, norm_eps, mlp") as caught:
        export(model("wrong.toml"), QUICK, "out", against="afternoon:build")
    assert caught.value.code == "VD3029"
    with pytest.raises(InputError, match=r"gives \[7\] for an image, its code gives \[14\]") as caught:
        export(model("right.toml"), QUICK, "out", against="afternoon:Wider")
    assert caught.value.code == "VD3029"
    assert not (project / "out").exists()


def test_the_same_function_is_exported_and_the_record_says_so(project, capsys) -> None:
    command = ["export", "right.toml", "--weights", "weights.safetensors", "-o"]
    assert main([*command, "proven", "--against", "afternoon:build"]) == 0
    said = capsys.readouterr()
    proof = Artifact.open(project / "proven").record.proof
    assert list(proof.against) == ["afternoon:build"]
    assert 0 <= proof.against["afternoon:build"] <= QUICK.tolerance
    assert "from afternoon:build" in said.out
    assert "not compared" not in said.out + said.err


@pytest.mark.slow
def test_without_it_the_record_and_the_last_line_say_what_was_not_compared(project, capsys) -> None:
    sys.modules["afternoon"] = None  # whoever imports it fails
    assert main(["export", "wrong.toml", "--weights", "weights.safetensors", "-o", "out"]) == 0
    said = capsys.readouterr()
    told = "the mapping was not compared with the code it came from (--against package.file:factory)"
    assert told in said.err.splitlines()[-1]
    assert told in said.out
    record = Artifact.open(project / "out").record
    assert (record.unproven, record.proof.against) == (told, {})


def test_validate_compares_with_the_code_that_is_named(project) -> None:
    made = export(model("wrong.toml"), QUICK, "wrong")
    config = ValidateConfig(backends=("onnxruntime",), limit=4, threads=1)
    report = validate(made, config, against="afternoon:build")
    assert report.reference == "afternoon:build"
    assert (report.verdict.outcome, report.passed) == ("fail", False)
    assert validate(made, config).passed  # its own original, which is the mapping's
    right = export(model("right.toml"), msgspec.structs.replace(QUICK, input="uint8-nhwc"), "right")
    assert validate(right, config, against="afternoon:build").passed
    with pytest.raises(UsageError, match=r"gives 14 numbers, the artifact .* gives 7"):
        validate(right, config, against="afternoon:Wider")


def test_a_module_is_compared_with_itself_in_any_case(project) -> None:
    (project / "input.json").write_text(json.dumps({"height": 16, "width": 24}))
    config = ModelConfig(source="afternoon:build", module=True, contract="input.json")
    with pytest.raises(UsageError, match="imported code itself") as caught:
        export(config, QUICK, "out", against="afternoon:build")
    assert caught.value.code == "VD2010"


def test_no_recipe_can_run_code_that_way(project) -> None:
    for section in ("model", "export", "validate"):
        text = '[model]\nsource = "right.toml"\n'
        text = (
            text + f'[{section}]\nagainst = "afternoon:build"\n' if section != "model" else text + 'against = "afternoon:build"\n'
        )
        (project / "recipe.toml").write_text(text)
        with pytest.raises(UsageError, match="against"):
            Recipe.load(project / "recipe.toml")
    assert "afternoon" not in sys.modules
