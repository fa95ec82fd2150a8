"""The Vision Transformer, on one page.

Equations are those of Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words" (arXiv:2010.11929), section 3.1:

    z_0   = [x_class; x_p^1 E; ...; x_p^N E] + E_pos                     (1)
    z'_l  = MSA(LN(z_{l-1})) + z_{l-1},      l = 1 ... L                 (2)
    z_l   = MLP(LN(z'_l)) + z'_l,            l = 1 ... L                 (3)
    y     = LN(z_L^0)                                                    (4)

Shapes: B images of C x H x W pixels, patches P_h x P_w in a grid of G_h x G_w, T tokens of width D, h heads of size d.
State-dict names are timm's wherever timm has the part. Everything optional is decided by the `ModelSpec` and by nothing
else. `freeze` turns a trained model into the form that is exported: the same function with its constants computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitdeploy.models import positions, relative
from vitdeploy.spec import ModelSpec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),  # CLIP's
    "relu": functional.relu,
}


class PatchEmbed(nn.Module):
    """Equation 1's x_p E: cut the image into patches and project each; two ways to write one function."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.patch, self.convolve = spec.patch, spec.embed == "conv"
        area = spec.input.channels * spec.patch[0] * spec.patch[1]
        self.proj = (
            nn.Conv2d(spec.input.channels, spec.width, spec.patch, spec.patch, bias=spec.patch_bias)
            if self.convolve
            else nn.Linear(area, spec.width, bias=spec.patch_bias)
        )

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        if self.convolve:
            return self.proj(x).flatten(2).transpose(1, 2)  # [B, D, G_h, G_w] -> [B, G_h G_w, D]
        x = x.unflatten(3, (-1, self.patch[1])).unflatten(2, (-1, self.patch[0]))  # [B, C, G_h, P_h, G_w, P_w]
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [B, G_h G_w, C P_h P_w]
        return self.proj(x)  # [B, G_h G_w, D]


class RelativeBias(nn.Module):
    """What BEiT adds to q k^T: a learned number for each head and each distance between two patches; see `relative`."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.grid, self.prefix = spec.grid, spec.prefix
        self.relative_position_bias_table = nn.Parameter(torch.zeros(spec.distances, spec.heads))

    def gather(self) -> Tensor:
        """The whole bias, float32 [1, h, T, T]."""
        table = self.relative_position_bias_table
        rows = relative.index_distances(self.grid, self.prefix).to(table.device)  # [T, T]
        return table[rows].permute(2, 0, 1)[None]


class Attention(nn.Module):
    """MSA of equation 2 (appendix A, equations 5 to 8): softmax(q k^T / sqrt(d)) v in each head, then one projection.

    The spec may say another factor than 1/sqrt(d).
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.heads, self.size = spec.heads, spec.head_size
        self.scale = spec.head_size**-0.5 if spec.scale is None else spec.scale
        self.interleaved = spec.rotary == "eva02"
        self.decomposed = False  # set by `freeze`: matmuls and softmax instead of one fused operator
        self.qkv = nn.Linear(spec.width, 3 * spec.inner, bias=spec.qkv_bias == "qkv")
        if spec.qkv_bias == "qv":
            self.q_bias = nn.Parameter(torch.zeros(spec.inner))
            self.v_bias = nn.Parameter(torch.zeros(spec.inner))
        norm = partial(nn.LayerNorm, spec.head_size, eps=spec.norm_eps) if spec.qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(), norm()
        self.norm = nn.LayerNorm(spec.inner, eps=spec.norm_eps) if spec.attn_norm else nn.Identity()
        self.proj = nn.Linear(spec.inner, spec.width)
        if spec.relative_positions == "blocks":
            self.rel_pos_bias = RelativeBias(spec)

    def bias(self) -> Tensor | None:
        """The bias of the packed projection, [3 h d], with zeros for keys that have none."""
        if hasattr(self, "q_bias"):
            return torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        return self.qkv.bias

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None, added: Tensor | None = None) -> Tensor:  # [B, T, D]
        if hasattr(self, "rel_pos_bias"):
            added = self.rel_pos_bias.gather()
        packed = functional.linear(x, self.qkv.weight, self.bias()) if hasattr(self, "q_bias") else self.qkv(x)
        parts = packed.chunk(3, -1)  # [B, T, 3 h d] -> 3 x [B, T, h d]
        q, k, v = (part.unflatten(-1, (self.heads, self.size)).transpose(1, 2) for part in parts)  # [B, h, T, d] each
        q, k = self.q_norm(q), self.k_norm(k)
        if turn is not None:
            q, k = (self.rotate(part, *turn) for part in (q, k))
        if self.decomposed:
            logits = q @ k.transpose(-2, -1)  # [B, h, T, T]; scale is in q
            x = functional.softmax(logits if added is None else logits + added, -1) @ v  # [B, h, T, d]
        else:
            x = functional.scaled_dot_product_attention(q, k, v, added, scale=self.scale)  # [B, h, T, d]
        return self.proj(self.norm(x.transpose(1, 2).flatten(2)))  # [B, T, h, d] -> [B, T, h d] -> [B, T, D]

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [B, h, T, d], [T, d], [T, d]
        """Turn channel pairs by the token's angle; EVA-02's neighbours are first brought to the "half" layout."""
        if self.interleaved:
            x = x[..., positions.pairs_to_halves(self.size)]
        first, second = x.chunk(2, -1)  # 2 x [B, h, T, d/2]
        return x * cos + torch.cat((-second, first), -1) * sin  # [B, h, T, d]


class FeedForward(nn.Module):
    """MLP of equation 3: two Linear layers with GELU in the paper; gated (SwiGLU, arXiv:2002.05202) or one Linear here."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gated, self.single = spec.mlp == "swiglu", spec.mlp == "linear"
        self.act = functional.silu if self.gated else ACTIVATIONS.get(spec.mlp)
        hidden = spec.width if self.single else spec.mlp_size
        self.fc1 = nn.Linear(spec.width, hidden * (2 if self.gated else 1))
        self.norm = nn.LayerNorm(hidden, eps=spec.norm_eps) if spec.mlp_norm else nn.Identity()
        if not self.single:
            self.fc2 = nn.Linear(hidden, spec.width)

    def forward(self, x: Tensor) -> Tensor:  # [..., D]
        x = self.fc1(x)  # [..., hidden], doubled when gated
        if self.act is None:
            return x
        if self.gated:
            gate, x = x.chunk(2, -1)  # 2 x [..., hidden]
            x = self.act(gate) * x
        else:
            x = self.act(x)
        return self.fc2(self.norm(x))  # [..., D]


class LayerScale(nn.Module):
    """One learned factor a channel on a residual branch (Touvron et al. 2021, CaiT, arXiv:2103.17239, section 2)."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Equations 2 and 3: attention and MLP, each normalised before and added to its input."""

    def __init__(self, spec: ModelSpec, drop_path: float) -> None:
        super().__init__()
        scale = partial(LayerScale, spec.width, spec.layer_scale) if spec.layer_scale is not None else nn.Identity
        self.norm1, self.attn, self.ls1 = norm(spec), Attention(spec), scale()
        self.norm2, self.mlp, self.ls2 = norm(spec), FeedForward(spec), scale()
        self.drop_path = drop_path

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None, added: Tensor | None = None) -> Tensor:  # [B, T, D]
        x = x + self.keep(self.ls1(self.attn(self.norm1(x), turn, added)))
        return x + self.keep(self.ls2(self.mlp(self.norm2(x))))

    def keep(self, x: Tensor) -> Tensor:
        """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): in training, drop the branch for some images."""
        if not self.training or not self.drop_path:
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path  # [B, 1, 1]
        return x * kept / (1 - self.drop_path)


class AttentionPool(nn.Module):
    """One learned query attends to all tokens, then an MLP (MAP head: Zhai et al. 2022, arXiv:2106.04560, section 3.2)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.heads, self.size, self.decomposed = spec.heads, spec.width // spec.heads, False
        self.latent = nn.Parameter(torch.randn(1, 1, spec.width) * spec.width**-0.5)
        self.q, self.kv, self.proj = (nn.Linear(spec.width, n * spec.width) for n in (1, 2, 1))
        self.norm, self.mlp = norm(spec), FeedForward(spec)

    def query(self) -> Tensor:
        """The projected query with 1/sqrt(d) in it, [1, h, 1, d]."""
        return self.q(self.latent).unflatten(-1, (self.heads, self.size)).transpose(1, 2) * self.size**-0.5

    def forward(self, x: Tensor) -> Tensor:  # [B, T, D]
        k, v = (part.unflatten(-1, (self.heads, self.size)).transpose(1, 2) for part in self.kv(x).chunk(2, -1))
        x = functional.softmax(self.query() @ k.transpose(-2, -1), -1) @ v  # [B, h, 1, T] -> [B, h, 1, d]
        x = self.proj(x.transpose(1, 2).flatten(2))  # [B, 1, h, d] -> [B, 1, D]
        return (x + self.mlp(self.norm(x)))[:, 0]  # [B, D]


class MlpHead(nn.Module):
    """The paper's pre-training head (section 3.1): one hidden layer with tanh."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        hidden = spec.head_mlp_width or spec.width
        self.fc1, self.fc2 = nn.Linear(spec.pooled_size, hidden), nn.Linear(hidden, spec.classes, bias=spec.head_bias)

    def forward(self, x: Tensor) -> Tensor:  # [B, pooled]
        return self.fc2(torch.tanh(self.fc1(x)))  # [B, classes]


class VisionTransformer(nn.Module):
    """The whole network.

    Args:
        spec: What to build.
        drop_path: Probability of dropping the last block's branches (rising linearly from 0), in training only.
    """

    def __init__(self, spec: ModelSpec, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        self.patch_embed = PatchEmbed(spec)
        for name, count in _prefix(spec).items():
            setattr(self, name, nn.Parameter(torch.randn(1, count, spec.width) * 0.02))
        if spec.position == "learned":
            self.pos_embed = nn.Parameter(torch.randn(1, spec.positions, spec.width) * 0.02)
        if spec.position == "conditional":  # CPVT (arXiv:2102.10882): zero padding tells a patch where the border is
            self.peg = nn.Conv2d(spec.width, spec.width, 3, padding=1, groups=spec.width)
        if spec.rotary != "none":
            cos, sin = positions.rotary(spec)
            self.register_buffer("cos", cos, persistent=False)  # [T, d]
            self.register_buffer("sin", sin, persistent=False)  # [T, d]
        if spec.relative_positions == "shared":
            self.rel_pos_bias = RelativeBias(spec)
        self.norm_pre = norm(spec) if spec.pre_norm else nn.Identity()
        rates = [drop_path * index / max(1, spec.depth - 1) for index in range(spec.depth)]
        self.blocks = nn.ModuleList(Block(spec, rate) for rate in rates)
        self.norm = norm(spec) if spec.final_norm == "tokens" else nn.Identity()
        self.fc_norm = norm(spec, spec.pooled_size) if spec.final_norm == "pooled" else nn.Identity()
        if spec.pool == "map":
            self.attn_pool = AttentionPool(spec)
        linear = partial(nn.Linear, spec.pooled_size, spec.classes, bias=spec.head_bias)
        heads: dict[str, Callable[[], nn.Module]] = {"none": nn.Identity, "mlp": partial(MlpHead, spec)}
        self.head = heads.get(spec.head, linear)()
        if spec.head == "distilled":
            self.head_dist = linear()
        self.apply(_initialise)

    def token_table(self) -> Tensor:
        """What equation 1 adds to the zero-padded patches: prefix tokens and E_pos as one table, float32 [1, T, D]."""
        spec = self.spec
        prefix = [getattr(self, name) for name in _prefix(spec)]  # [1, k, D] each
        table = torch.cat([*prefix, self.patch_embed.proj.weight.new_zeros(1, spec.patches, spec.width)], 1)  # [1, T, D]
        if spec.position in ("none", "conditional"):
            return table
        places = self.places().to(table)  # [1, positions, D]
        own = spec.positions - spec.patches  # prefix tokens with a position; registers stand between and have none
        gap = spec.prefix - own
        return table + torch.cat((places[:, :own], places.new_zeros(1, gap, spec.width), places[:, own:]), 1)

    def places(self) -> Tensor:
        """E_pos, float32 [1, positions, D]: learned, or fixed (with zeros for class tokens in two dimensions, as in MAE)."""
        spec = self.spec
        if spec.position == "learned":
            return self.pos_embed
        if spec.position == "sinusoidal":
            return positions.sinusoidal(spec.positions, spec.width)
        return functional.pad(positions.sincos2d(spec.grid, spec.width), (0, 0, spec.positions - spec.patches, 0))

    def sequence(self, pixels: Tensor) -> Tensor:  # [B, C, H, W]
        """z_L of equation 3, float32 [B, T, D]."""
        prefix = self.spec.prefix
        x = functional.pad(self.patch_embed(pixels), (0, 0, prefix, 0))  # [B, N, D] -> [B, T, D]
        x = self.norm_pre(x + self.token_table())
        turn = (self.cos, self.sin) if self.spec.rotary != "none" else None
        added = self.rel_pos_bias.gather() if self.spec.relative_positions == "shared" else None
        for index, block in enumerate(self.blocks):
            x = block(x, turn, added)
            if index == 0 and self.spec.position == "conditional":
                image = x[:, prefix:].transpose(1, 2).unflatten(2, self.spec.grid)  # [B, D, G_h, G_w]
                x = x + functional.pad(self.peg(image).flatten(2).transpose(1, 2), (0, 0, prefix, 0))  # [B, T, D]
        return x

    def pool(self, x: Tensor) -> Tensor:  # z_L, [B, T, D]
        """One vector an image, float32 [B, pooled_size]: equation 4's LN(z_L^0), or another of the spec's pools."""
        if self.spec.pool == "cls":  # LN treats each token alone: selecting first gives the same and costs 1/T
            return self.fc_norm(self.norm(x[:, 0]))
        x = self.norm(x)
        patches = x[:, self.spec.prefix :]  # [B, N, D]
        if self.spec.pool == "mean":
            return self.fc_norm(patches.mean(1))
        if self.spec.pool == "max":
            return self.fc_norm(patches.amax(1))
        if self.spec.pool == "map":
            return self.fc_norm(self.attn_pool(x))
        return self.fc_norm(torch.cat((x[:, 0], patches.mean(1)), -1))  # [B, 2 D]

    def outputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """``tokens`` [B, T, D] after the last norm, ``pooled`` [B, pooled_size] and the head's, by the name `spec.output`."""
        x = self.sequence(pixels)
        named = {"tokens": self.norm(x), "pooled": self.pool(x)}
        if self.spec.head != "none":
            named[self.spec.output] = self.classify(x)
        return named

    def classify(self, x: Tensor) -> Tensor:  # z_L, [B, T, D]
        """The head on the pooled vector, float32 [B, classes]; DeiT averages the heads of its two tokens."""
        if self.spec.head == "distilled":
            return (self.head(self.pool(x)) + self.head_dist(self.fc_norm(self.norm(x[:, 1])))) / 2
        return self.head(self.pool(x))

    def forward(self, pixels: Tensor) -> Tensor:
        """The main output, float32: logits or an embedding [B, classes], or pooled features [B, pooled_size] without head.

        Args:
            pixels: float32 [B, C, H, W], normalised by the spec's input contract.
        """
        return self.classify(self.sequence(pixels))  # without a head, `head` passes the pooled vector through


def norm(spec: ModelSpec, width: int | None = None) -> nn.LayerNorm:
    """LN of equations 2 to 4, over the last axis."""
    return nn.LayerNorm(width or spec.width, eps=spec.norm_eps)


def build(spec: ModelSpec, *, seed: int = 0) -> VisionTransformer:
    """A model with random weights, in evaluation mode: the same for the same seed on every machine.

    Initialisation is timm's: truncated normal of 0.02 for matrices, normal of 0.02 for tokens and positions, biases 0.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(spec).eval()


def _prefix(spec: ModelSpec) -> dict[str, int]:
    counts = {"cls_token": int(spec.class_token), "dist_token": int(spec.distillation_token), "reg_token": spec.registers}
    return {name: count for name, count in counts.items() if count}


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
        else:  # as PyTorch's and timm's patch embeddings: scaled by the fan-in
            nn.init.trunc_normal_(module.weight, std=math.sqrt(1 / module.weight[0].numel()))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
