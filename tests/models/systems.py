"""Vision Transformers as people write them themselves, one thing in each that the papers' network has not: for ``--module``.

Small, with seeded random weights that let every part count. `SYSTEMS` says what is particular; `build` makes one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

WIDTH, DEPTH, HEADS, CLASSES = 48, 2, 4, 7
SIDE, PATCH = 32, 8


class Attention(nn.Module):
    """Heads side by side, as wide in all as ``inner``."""

    def __init__(self, heads: int = HEADS, inner: int = WIDTH) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(WIDTH, 3 * inner), nn.Linear(inner, WIDTH)

    def hide(self, scores: Tensor) -> Tensor:
        """Scores [N, h, T, T] that are not hidden."""
        return scores

    def forward(self, x: Tensor) -> Tensor:  # [N, T, D]
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        return self.out((self.hide(scores).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Masked(Attention):
    """A token sees itself and those behind it alone; the class token, which comes first, sees all."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.ones(17, 17).triu())

    def hide(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(self.seen == 0, -1e9)


class OwnChannels(nn.Module):
    """Heads made by reshaping channels: each head has a layer of its own for its channels, one for all heads."""

    def __init__(self) -> None:
        super().__init__()
        size = WIDTH // HEADS
        self.q, self.k, self.v = (nn.Linear(size, size) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        own = x.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # [N, h, T, d]
        scores = self.q(own) @ self.k(own).transpose(-2, -1) / math.sqrt(own.shape[-1])
        return self.out((scores.softmax(-1) @ self.v(own)).transpose(1, 2).flatten(2))


class FullWidth(nn.Module):
    """Heads that are each as wide as the model, in layers of their own, joined by one projection."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Attention(1) for _ in range(2))
        self.out = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([head(x) for head in self.heads], -1))


class Block(nn.Module):
    """Normalise, mix, add; normalise, widen, add."""

    def __init__(self, attention: nn.Module, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.before, self.attention, self.between = norm(), attention, norm()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.between(x))


class System(nn.Module):
    """A ViT with parts to be replaced.

    Args:
        attention: Makes a block's attention.
        norm: Makes a norm.
        shared: One block, applied as often as there would be blocks.
        channels: Of the images.
        patch: Side of a patch; images are four patches high and wide.
    """

    def __init__(
        self,
        attention: Callable[[], nn.Module] = Attention,
        *,
        norm: Callable[[], nn.Module] = lambda: nn.LayerNorm(WIDTH),
        shared: bool = False,
        channels: int = 3,
        patch: int = PATCH,
    ) -> None:
        super().__init__()
        self.cut = nn.Conv2d(channels, WIDTH, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.places = nn.Parameter(torch.zeros(1, 17, WIDTH))
        self.blocks = nn.ModuleList(Block(attention(), norm) for _ in range(1 if shared else DEPTH))
        self.repeats = DEPTH if shared else 1
        self.norm, self.head = norm(), nn.Linear(WIDTH, CLASSES)

    def begin(self, images: Tensor) -> Tensor:
        """Tokens [N, T, D] of images [N, C, H, W]."""
        patches = self.cut(images).flatten(2).transpose(1, 2)
        return torch.cat((self.token.expand(images.shape[0], -1, -1), patches), 1) + self.places

    def end(self, tokens: Tensor) -> object:
        """What the network returns of tokens [N, T, D]."""
        return self.head(tokens[:, 0])

    def forward(self, images: Tensor) -> object:
        x = self.begin(images)
        for block in [*self.blocks] * self.repeats:
            x = block(x)
        return self.end(self.norm(x))


class TanhHead(System):
    """A head of two layers with tanh between them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES))


class Conditional(System):
    """Positions from a depth-wise convolution over the patches, and the largest of each channel over them."""

    def __init__(self) -> None:
        super().__init__()
        self.peg = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)

    def begin(self, images: Tensor) -> Tensor:
        patches = self.cut(images)
        return (patches + self.peg(patches)).flatten(2).transpose(1, 2)

    def end(self, tokens: Tensor) -> object:
        return self.head(tokens.max(1).values)


class Sinusoidal(System):
    """Positions that are computed, and the mean of the patches."""

    def begin(self, images: Tensor) -> Tensor:
        patches = self.cut(images).flatten(2).transpose(1, 2)
        angles = torch.arange(16)[:, None] / 10_000 ** (torch.arange(0, WIDTH, 2) / WIDTH)
        return patches + torch.stack((angles.sin(), angles.cos()), -1).flatten(1)

    def end(self, tokens: Tensor) -> object:
        return self.head(tokens.mean(1))


class Registers(System):
    """Four more tokens beside the class token, which nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.registers = nn.Parameter(torch.zeros(1, 4, WIDTH))

    def begin(self, images: Tensor) -> Tensor:
        return torch.cat((super().begin(images), self.registers.expand(images.shape[0], -1, -1)), 1)


class ExtraAxis(System):
    """Logits [N, 1, classes]."""

    def end(self, tokens: Tensor) -> object:
        return self.head(tokens[:, :1])


class Pair(System):
    """Logits, and the tokens beside them, in a tuple."""

    def end(self, tokens: Tensor) -> object:
        return super().end(tokens), tokens


class Seen(System):
    """A masked encoder: every other patch is left out before the blocks."""

    def begin(self, images: Tensor) -> Tensor:
        return super().begin(images)[:, ::2]


SYSTEMS: dict[str, tuple[str, Callable[[], System]]] = {
    "single_head": ("one head, half as wide again as the model", lambda: System(lambda: Attention(1, 3 * WIDTH // 2))),
    "wide_heads": ("heads, together half as wide again as the model", lambda: System(lambda: Attention(HEADS, 3 * WIDTH // 2))),
    "own_channels": ("heads made by reshaping channels", lambda: System(OwnChannels)),
    "full_width": ("heads as wide as the model, joined", lambda: System(FullWidth)),
    "shared_block": ("one block, applied twice", lambda: System(shared=True)),
    "whole_norm": ("LayerNorm over tokens and width", lambda: System(norm=lambda: nn.LayerNorm((17, WIDTH)))),
    "tanh_head": ("a head of two layers with tanh", TanhHead),
    "conditional": ("positions from a convolution, max pool", Conditional),
    "sinusoidal": ("computed positions, mean pool", Sinusoidal),
    "masked": ("causal mask, masked_fill with -1e9", lambda: System(Masked)),
    "seen_patches": ("a masked encoder: every other token", Seen),
    "registers": ("register tokens", Registers),
    "grey_pixels": ("grey, patches of one pixel", lambda: System(channels=1, patch=1)),
    "extra_axis": ("logits [N, 1, classes]", ExtraAxis),
    "pair": ("a tuple of logits and tokens", Pair),
}
"""Name to what is particular of it, and how it is made."""


def build(name: str) -> System:
    """A system in evaluation mode; the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        system = SYSTEMS[name][1]().eval()
        with torch.no_grad():
            for parameter in system.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return system


def size_images(name: str) -> tuple[int, int]:
    """Side and channels of a system's images."""
    return (4, 1) if name == "grey_pixels" else (SIDE, 3)


def __getattr__(name: str) -> Callable[[], System]:
    """Each system as a factory of its own name, as ``--module tests.models.systems:NAME`` asks for it."""
    if name not in SYSTEMS:
        raise AttributeError(name)
    return lambda: build(name)
