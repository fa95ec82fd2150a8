"""Mapping files: a home-made ViT of torch's own layers becomes ours; every mistake in the file is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.checkpoints.test_peers import shake
from vitdeploy.checkpoints import mapping, safetensors
from vitdeploy.errors import InputError, UsageError, VitdeployError

D, HEADS, DEPTH, PATCH, SIDE, CLASSES = 32, 4, 2, 8, 32, 6


class HomeMade(nn.Module):
    """A ViT as people write it in an afternoon."""

    def __init__(self) -> None:
        super().__init__()
        self.to_patches = nn.Conv2d(3, D, PATCH, PATCH)
        self.cls = nn.Parameter(torch.randn(D))
        self.pos = nn.Parameter(torch.randn((SIDE // PATCH) ** 2 + 1, D))
        layer = nn.TransformerEncoderLayer(D, HEADS, 48, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, DEPTH, nn.LayerNorm(D), enable_nested_tensor=False)
        self.classify = nn.Parameter(torch.randn(D, CLASSES))
        self.decoder = nn.Linear(D, 3 * PATCH * PATCH)  # from pre-training

    def forward(self, images: Tensor) -> Tensor:
        x = self.to_patches(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(len(x), 1, -1), x), 1) + self.pos
        return self.encoder(x)[:, 0] @ self.classify


SPEC = f"""
name = "home-made"
patch = [{PATCH}, {PATCH}]
width = {D}
depth = {DEPTH}
heads = {HEADS}
mlp_width = 48
norm_eps = 1e-5
head_bias = false
classes = {CLASSES}
input = {{ height = {SIDE}, width = {SIDE} }}
"""
RENAME = r"""
[rename]
'to_patches\.(weight|bias)' = 'patch_embed.proj.\1'
'cls' = "cls_token"
"pos" = 'pos_embed'
'encoder\.layers\.(\d+)\.self_attn\.in_proj_(weight|bias)' = 'blocks.\1.attn.qkv.\2'
'encoder\.layers\.(\d+)\.self_attn\.out_proj\.(\w+)' = 'blocks.\1.attn.proj.\2'
'encoder\.layers\.(\d+)\.norm([12])\.(\w+)' = 'blocks.\1.norm\2.\3'
"encoder\\.layers\\.(\\d+)\\.linear([12])\\.(\\w+)" = "blocks.\\1.mlp.fc\\2.\\3"
'encoder\.norm\.(?P<kind>\w+)' = 'norm.\g<kind>'
'classify' = 'head.weight'
"""
REST = r"""
[leave_out]
'decoder\..*' = "reconstructs pixels in pre-training"
[change]
'head\.weight' = "transpose"
'cls_token|pos_embed' = "token"
"""


def home_made() -> HomeMade:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = HomeMade().eval()
    shake(made)
    return made


def write(folder: Path, text: str) -> Path:
    (folder / "my_vit.toml").write_text(SPEC)
    path = folder / "mapping.toml"
    path.write_text(text)
    return path


WHOLE = 'spec = "my_vit.toml"\n' + RENAME + REST


@pytest.mark.parametrize("inline", [False, True])
def test_a_home_made_vit(inline: bool, tmp_path: Path) -> None:
    theirs = home_made()
    path = write(tmp_path, RENAME + REST + "[spec]\n" + SPEC if inline else WHOLE)
    spec, converted, matched = mapping.load(path, theirs.state_dict())
    assert spec.name == "home-made"
    assert converted.left_out == dict.fromkeys(("decoder.weight", "decoder.bias"), "reconstructs pixels in pre-training")
    assert matched["[rename] cls"] == 1
    assert matched[r"[rename] encoder\.layers\.(\d+)\.norm([12])\.(\w+)"] == 8
    assert matched["[change] cls_token|pos_embed"] == 2
    assert sum(n for pattern, n in matched.items() if "change" not in pattern) == len(theirs.state_dict())
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        outputs, expected = safetensors.assemble(spec, converted.state)(images), theirs(images)
    assert (outputs - expected).abs().max() <= 1e-5 * expected.std()


def test_separate_projections_and_a_known_variant(tmp_path: Path) -> None:
    text = 'spec = "vit_tiny_patch16_224"\n[rename]\n' + r"""'b(\d)\.to_([qkv])' = 'blocks.\1.attn.\2.weight'"""
    state = {f"b{n}.to_{part}": torch.ones(4, 4) for n in range(2) for part in "qkv"}
    spec, converted, matched = mapping.load(write(tmp_path, text), state)
    assert spec.width == 192
    assert set(converted.state) == {f"blocks.{n}.attn.{part}.weight" for n in range(2) for part in "qkv"}
    assert list(matched.values()) == [6]


MISTAKES: dict[str, tuple[str, type[VitdeployError], str, str]] = {
    "not TOML": ("spec = ", UsageError, "VD2007", "not valid TOML"),
    "no spec": (RENAME, UsageError, "VD2003", "spec"),
    "unknown section": (WHOLE + "[leaveout]\n", UsageError, "VD2002", "line 19.*'leaveout'.*did you mean 'leave_out'"),
    "unknown key of the spec": (RENAME + REST + "[spec]\nname='x'\nwdth=3\n", UsageError, "VD2002", "'spec.wdth'.*'width'"),
    "unknown variant": (WHOLE.replace("my_vit.toml", "vit_tny_patch16_224"), UsageError, "VD2001", "vit_tiny"),
    "spec that is not there": (WHOLE.replace("my_vit.toml", "none.toml"), InputError, "VD3001", "none.toml"),
    "bad pattern": (WHOLE.replace(r"'classify'", r"'classify('"), UsageError, "VD2003", "line 12.*no regular expression"),
    "bad pattern with escapes": (
        WHOLE.replace(r'"encoder\\.layers', r'"encoder\\.(layers'), UsageError, "VD2003", "line 10.*no regular expression",
    ),
    "long pattern": (WHOLE.replace("'classify'", f"'{'c' * 501}'"), UsageError, "VD2003", "line 12.*501 characters"),
    "no such group": (WHOLE.replace(r"proj.\1", r"proj.\2"), UsageError, "VD2003", "line 4.*can't be filled in"),
    "no such named group": (WHOLE.replace(r"\g<kind>", r"\g<k>"), UsageError, "VD2003", "line 11.*can't be filled in"),
    "unknown change": (WHOLE.replace('"transpose"', '"transpos"'), UsageError, "VD2003", "line 17.*did you mean 'transpose'"),
    "pattern without use": (WHOLE.replace("[change]", "'x' = 'y'\n[change]"), UsageError, "VD2003", "line 16.*decides no tensor"),
    "pattern in the shade": (WHOLE.replace("'cls' =", "'cl.' = 'cls_token'\n'cls' ="), UsageError, "VD2003", "the upper one"),
    "change without use": (WHOLE + "'a' = 'token'\n", UsageError, "VD2003", r"line 19.*\[change\] decides no tensor"),
    "two of one name": (WHOLE.replace(r"norm\2", "norm1"), InputError, "VD3009", "two tensors the name 'blocks.0.norm1.weight'"),
    "unknown tensors": (WHOLE.replace("'decoder", "'dec"), InputError, "VD3009", "2 tensors: decoder.weight, decoder.bias;"),
    "no matrix": (WHOLE.replace(r"'head\.weight'", "'norm.bias'"), InputError, "VD3009", "line 17.*only matrices"),
    "impossible change": (WHOLE.replace('"transpose"', '"kernel"'), InputError, "VD3009", "line 17.*does not allow"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str, tmp_path: Path) -> None:
    text, kind, code, says = MISTAKES[name]
    with pytest.raises(kind, match=says) as caught:
        mapping.load(write(tmp_path, text), home_made().state_dict())
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_only_five_unknown_tensors_are_listed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"7 tensors: x0, x1, x2, x3, x4, \.\.\.;"):
        mapping.load(write(tmp_path, WHOLE), {f"x{n}": torch.zeros(1) for n in range(7)})


def test_long_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="201 characters"):
        mapping.load(write(tmp_path, WHOLE), {"x" * 201: torch.zeros(1)})
