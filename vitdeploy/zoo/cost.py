"""What a model costs, counted from its spec without building it: parameters and multiply-accumulates.

Symbols are the ViT paper's (arXiv:2010.11929): C channels, patches of P_h x P_w, N patches, T tokens, width D, L blocks; and
h heads of size d, so that h d is the width of queries, keys and values; M is the hidden width of the MLP.
"""

from __future__ import annotations

from vitdeploy.spec import ModelSpec


def count_parameters(spec: ModelSpec) -> int:
    """How many numbers are learned.

    * patches: C P_h P_w D, and D for the bias;
    * tokens and positions: D for each prefix token and each row of a learned table; 10 D for a conditional 3 x 3 filter;
      h for each row of a table of relative positions;
    * L blocks: two norms of 2 D; 3 D h d, with h d for each projection that has a bias; 4 d for norms of queries and keys;
      2 h d for a norm of what the heads give;
      h d D + D; the MLP; 2 D for LayerScale;
    * MLP: D M + M, twice that when gated, then M D + D; or D D + D when it is one Linear layer; 2 M for its norm;
    * pool and head: `map` has D, 4 D D + 4 D, a norm and an MLP.

    Equal, to the last one, to the count of the PyTorch module.
    """
    width, norm = spec.width, 2 * spec.width
    patch = spec.input.channels * spec.patch[0] * spec.patch[1] * width + spec.patch_bias * width
    rows = spec.prefix + {"learned": spec.positions, "conditional": 10}.get(spec.position, 0)
    tables = {"none": 0, "shared": 1, "blocks": spec.depth}[spec.relative_positions] * spec.distances * spec.heads
    biases = {"qkv": 3, "qv": 2, "none": 0}[spec.qkv_bias] * spec.inner
    attention = 4 * width * spec.inner + biases + width + spec.qk_norm * 4 * spec.head_size + spec.attn_norm * 2 * spec.inner
    scales = 0 if spec.layer_scale is None else 2 * width
    block = 2 * norm + attention + _count_mlp(spec) + scales
    last = {"tokens": norm, "pooled": 2 * spec.pooled_size, "none": 0}[spec.final_norm]
    pool = width + 4 * (width * width + width) + norm + _count_mlp(spec) if spec.pool == "map" else 0
    return patch + rows * width + tables + spec.depth * block + spec.pre_norm * norm + last + pool + _count_head(spec, 1)


def count_macs(spec: ModelSpec) -> int:
    """Multiply-accumulates of one image, as the frozen model that is exported does them.

    * patches: N C P_h P_w D; a conditional position filter: 9 N D;
    * L blocks: 3 T D h d for queries, keys and values; T T h d for q k^T and as many for a v; T h d D to project back; T for
      each weight of the MLP;
    * `map` pool: 2 T D D for keys and values (the query is a constant), 2 T D for its attention, D D, and one MLP;
    * head: its weights.

    T falls behind the attention of a block that merges tokens (`ModelSpec.merged`); finding which is not counted.

    Norms, activations, softmax, sums and the rotation are not counted, as is usual (fvcore, torch.utils.flop_counter). One
    multiply-accumulate is two floating-point operations.

    Source:
        Equations 1 to 4 of arXiv:2010.11929, each matrix product of [a, b] by [b, c] counted as a b c.
    """
    tokens, width = spec.tokens, spec.width
    total = spec.patches * spec.input.channels * spec.patch[0] * spec.patch[1] * width
    if spec.position == "conditional":
        total += 9 * spec.patches * width
    for merged in spec.merged or (0,) * spec.depth:
        total += 4 * tokens * width * spec.inner + 2 * tokens * tokens * spec.inner
        tokens -= merged
        total += tokens * _count_mlp_weights(spec)
    if spec.pool == "map":
        total += 2 * tokens * width * width + 2 * tokens * width + width * width + _count_mlp_weights(spec)
    return total + _count_head(spec, 0)


def _count_mlp_weights(spec: ModelSpec) -> int:
    if spec.mlp == "linear":
        return spec.width * spec.width
    return (3 if spec.mlp == "swiglu" else 2) * spec.width * spec.mlp_size


def _count_mlp(spec: ModelSpec) -> int:
    if spec.mlp == "linear":
        return _count_mlp_weights(spec) + spec.width
    hidden = (2 if spec.mlp == "swiglu" else 1) * spec.mlp_size
    return _count_mlp_weights(spec) + hidden + spec.width + spec.mlp_norm * 2 * spec.mlp_size


def _count_head(spec: ModelSpec, bias: int) -> int:
    """Weights of the head, and its biases when ``bias`` is 1."""
    last = spec.classes * bias * spec.head_bias
    if spec.head == "none":
        return 0
    if spec.head == "mlp":
        hidden = spec.head_mlp_width or spec.width
        return spec.pooled_size * hidden + hidden * bias + hidden * spec.classes + last
    return (2 if spec.head == "distilled" else 1) * (spec.pooled_size * spec.classes + last)
