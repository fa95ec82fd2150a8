"""Networks as people write them themselves, small and with random weights: their attention takes other ways than timm's.

They stand in a file of their own, without imports from this repository, so that a test may also give it to `export --module`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIDE, PATCH, WIDTH, HEADS, DEPTH, CLASSES = 32, 8, 32, 4, 2, 5
TOKENS = (SIDE // PATCH) ** 2 + 1


class Block(nn.Module):
    """`nn.MultiheadAttention` as it comes, with its probabilities, which nobody reads."""

    def __init__(self, heads: int = HEADS, *, tokens_first: bool = False, probabilities: bool = True) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, heads, batch_first=not tokens_first)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.probabilities, self.mask = probabilities, None

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=self.probabilities, attn_mask=self.mask)[0]
        return x + self.down(nn.functional.gelu(self.up(self.between(x))))


class Net(nn.Module):
    """Patches, class token, blocks, head."""

    def __init__(self, **options: bool | int) -> None:
        super().__init__()
        self.tokens_first = options.get("tokens_first", False)
        self.cut = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls, self.places = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.blocks = nn.Sequential(*(Block(**options) for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.cut(pixels).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x), 1) + self.places
        x = x.transpose(0, 1) if self.tokens_first else x
        x = self.norm(self.blocks(x))
        return self.head(x[0] if self.tokens_first else x[:, 0])


class Encoder(nn.Module):
    """`nn.TransformerEncoder` as it comes: tokens first from the patches on."""

    def __init__(self, *, mean: bool = False) -> None:
        super().__init__()
        self.mean, self.cut = mean, nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls, self.places = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(TOKENS, 1, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, 0.0, "gelu", norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, DEPTH, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.cut(pixels).flatten(2).permute(2, 0, 1)  # [T, N, C]
        x = self.encoder(torch.cat((self.cls.expand(-1, x.shape[1], -1), x)) + self.places)
        return self.head(x.mean(0) if self.mean else x[0])


class Decoder(nn.Module):
    """An encoder, and a decoder whose queries look at it; the target is kept in the network."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.places = nn.Conv2d(3, WIDTH, PATCH, PATCH), nn.Parameter(torch.randn(1, TOKENS - 1, WIDTH))
        self.queries = nn.Parameter(torch.randn(1, 4, WIDTH))
        options = {"batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, 0.0, "gelu", **options)
        self.encoder = nn.TransformerEncoder(layer, DEPTH, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 2 * WIDTH, 0.0, "gelu", **options)
        self.decoder = nn.TransformerDecoder(layer, DEPTH, nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.cut(pixels).flatten(2).transpose(1, 2) + self.places
        return self.head(self.decoder(self.queries.expand(x.shape[0], -1, -1), self.encoder(x)).mean(1))


class LastNorm(nn.LayerNorm):
    """Of the channels of [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvBlock(nn.Module):
    """A block whose layers are convolutions of 1 x 1 pixels.

    Args:
        form: How heads are cut: ``queries`` first in their product (CoAtNet, Visformer), ``values`` first in theirs
            (EfficientFormer, Keras exports), ``fused``.
        local: A depth-wise convolution in the MLP.
    """

    def __init__(self, form: str, *, local: bool = False) -> None:
        super().__init__()
        self.form = form
        self.before, self.between = LastNorm(WIDTH), LastNorm(WIDTH)
        self.qkv, self.out = nn.Conv2d(WIDTH, 3 * WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)
        self.up, self.down = nn.Conv2d(WIDTH, 2 * WIDTH, 1), nn.Conv2d(2 * WIDTH, WIDTH, 1)
        self.local = nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, padding=1, groups=2 * WIDTH) if local else nn.Identity()
        self.scale = nn.Parameter(torch.ones(WIDTH, 1, 1))

    def mix(self, y: Tensor) -> Tensor:
        n, c, height, width = y.shape
        packed = self.qkv(y)
        if self.form == "values":
            q, k, v = packed.reshape(n, 3, HEADS, c // HEADS, height * width).unbind(1)  # [N, h, d, T] each
            mixed = v @ (q.transpose(-2, -1) @ k * 0.3).softmax(-1).transpose(-2, -1)
        elif self.form == "queries":
            q, k, v = packed.flatten(2).transpose(1, 2).reshape(n, -1, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
            mixed = ((q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v).transpose(-2, -1)
        else:
            parts = packed.view(n, HEADS, 3 * c // HEADS, -1).transpose(-1, -2).chunk(3, -1)
            mixed = nn.functional.scaled_dot_product_attention(*parts).transpose(-1, -2)
        return self.out(mixed.reshape(n, c, height, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.before(x))
        return x + self.scale * self.down(nn.functional.gelu(self.local(self.up(self.between(x)))))


class ConvNet(nn.Module):
    """A map of pixels from end to end."""

    def __init__(self, form: str, *, local: bool = False) -> None:
        super().__init__()
        self.cut, self.places = nn.Conv2d(3, WIDTH, PATCH, PATCH), nn.Parameter(torch.randn(1, WIDTH, 4, 4))
        self.blocks = nn.Sequential(*(ConvBlock(form, local=local) for _ in range(DEPTH)))
        self.norm, self.head = LastNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.cut(pixels) + self.places)).mean((2, 3)))


class Plain(nn.Module):
    """Convolutions alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.layers(pixels).mean((2, 3)))


def shake(net: nn.Module) -> nn.Module:
    """Every vector random too; in evaluation mode."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def causal() -> nn.Module:
    """A mask of yes and no, the same in every block."""
    net = Net()
    for block in net.blocks:
        block.mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    return net


NETWORKS = {
    "fused": lambda: Net(probabilities=False),
    "probabilities": Net,
    "tokens-first": lambda: Net(tokens_first=True),
    "encoder": Encoder,
    "encoder-mean": lambda: Encoder(mean=True),
    "one-head": lambda: Net(heads=1),
    "causal": causal,
    "conv-queries": lambda: ConvNet("queries"),
    "conv-values": lambda: ConvNet("values"),
    "conv-fused": lambda: ConvNet("fused"),
    "conv-local": lambda: ConvNet("queries", local=True),
    "decoder": Decoder,
    "plain": Plain,
}
"""Name to what builds it."""


def build(name: str) -> nn.Module:
    """One of `NETWORKS`, the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return shake(NETWORKS[name]())
