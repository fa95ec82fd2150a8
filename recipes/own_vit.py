"""The demo's model as somebody else would have written it: a network of torch's own layers, under names of its own.

    python recipes/own_vit.py                  writes its checkpoint, runs/own_vit.safetensors, for recipes/mapping.toml

`recipes/module.toml` imports and runs this file; `recipes/mapping.toml` only describes it, and reads its checkpoint.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

HERE = Path(__file__).parent
CHECKPOINT = HERE.parent / "runs" / "own_vit.safetensors"
WIDTH, HEADS, DEPTH, PATCH, SIDE, CLASSES = 96, 3, 4, 4, 28, 10
NAMES = (
    (r"patch_embed\.proj\.(\w+)", r"cut.\1"),
    (r"cls_token", r"start"),
    (r"pos_embed", r"places"),
    (r"blocks\.(\d+)\.norm(\d)\.(\w+)", r"encoder.layers.\1.norm\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.(\w+)", r"encoder.layers.\1.self_attn.in_proj_\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"encoder.layers.\1.self_attn.out_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.fc(\d)\.(\w+)", r"encoder.layers.\1.linear\2.\3"),
    (r"norm\.(\w+)", r"encoder.norm.\1"),
    (r"head\.(\w+)", r"classify.\1"),
)
"""Names of the demo's weights, and what they are called here."""


class OwnViT(nn.Module):
    """A ViT as one writes it in an afternoon."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.start = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.places = nn.Parameter(torch.zeros(1, (SIDE // PATCH) ** 2 + 1, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, DEPTH, nn.LayerNorm(WIDTH, 1e-6), enable_nested_tensor=False)
        self.classify = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:  # [N, 1, 28, 28]
        """Logits [N, 10]."""
        patches = self.cut(images).flatten(2).transpose(1, 2)  # [N, 49, 96]
        tokens = torch.cat((self.start.expand(images.shape[0], -1, -1), patches), 1) + self.places
        return self.classify(self.encoder(tokens)[:, 0])


def read_weights() -> dict[str, Tensor]:
    """The demo's weights under the names of `OwnViT`."""
    renamed = {}
    for name, tensor in load_file(HERE / "fashion_mnist_vit.safetensors").items():
        pattern, own = next(pair for pair in NAMES if re.fullmatch(pair[0], name))
        renamed[re.sub(f"^{pattern}$", own, name)] = tensor
    return renamed


def build() -> OwnViT:
    """The network with its weights: what ``--module recipes/own_vit.py:build`` calls."""
    network = OwnViT()
    network.load_state_dict(read_weights())
    return network


if __name__ == "__main__":
    CHECKPOINT.parent.mkdir(exist_ok=True)
    save_file(read_weights(), CHECKPOINT)
    print(CHECKPOINT)
