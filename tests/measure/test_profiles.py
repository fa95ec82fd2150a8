"""Where the time goes, by operation and by block: what engines name is brought to blocks, and nothing is lost on the way."""

import pytest

from vitdeploy.backends.base import Profile, Spent
from vitdeploy.measure import profiles

TAKEN = Profile(
    10.0,
    (
        Spent("patch_embed/Conv", "Conv", 1.0),
        Spent("blocks.0.attn.qkv/MatMul", "MatMul", 2.0),
        Spent("MVN_12", "MVN", 0.25),
        Spent("blocks.0.mlp.fc1/MatMul", "MatMul", 3.0),
        Spent("MVN_13", "MVN", 0.5),
        Spent("blocks.1.attn.qkv/MatMul", "MatMul", 2.0),
        Spent("norm/LayerNormalization", "MVN", 0.25),
    ),
)


def table(rows):
    return {row.subject: tuple(round(row.metrics[name].value, 6) for name in ("time", "share", "operators")) for row in rows}


def test_kinds_are_summed_the_longest_first():
    assert list(table(profiles.sum_kinds(TAKEN)).items()) == [
        ("MatMul", (7.0, 0.7, 3)),
        ("Conv", (1.0, 0.1, 1)),
        ("MVN", (1.0, 0.1, 3)),
        (profiles.BETWEEN, (1.0, 0.1, 0)),
    ]


def test_blocks_are_summed_in_their_order():
    """What has no number lies in the block around it; between two, it is the later one's norm."""
    assert list(table(profiles.sum_blocks(TAKEN)).items()) == [
        (profiles.BEFORE, (1.0, 0.1, 1)),
        ("block 0", (5.25, 0.525, 3)),
        ("block 1", (2.5, 0.25, 2)),
        (profiles.AFTER, (0.25, 0.025, 1)),
        (profiles.BETWEEN, (1.0, 0.1, 0)),
    ]


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("blocks.11.attn.qkv/MatMul", "block 11"),
        ("/blocks/blocks.3/mlp/fc1/MatMul", "block 3"),
        ("/encoder/layers/encoder_layer_4/self_attention/Softmax", "block 4"),
        ("/vit/encoder/layer.5/output/Add", "block 5"),
        ("vision_model.encoder.layers.6.mlp", "block 6"),
        ("/layers.2/blocks.7/norm1", "block 2.7"),
        ("/blocks.1/layer_norm_2/Add", "block 1"),
    ],
)
def test_names_of_every_library_tell_the_block(name, block):
    spent = (Spent("stem", "Conv", 1.0), Spent(name, "MatMul", 1.0), Spent("head", "Gemm", 1.0))
    assert profiles.find_blocks(spent) == [profiles.BEFORE, block, profiles.AFTER]


def test_without_names_there_are_no_blocks():
    assert profiles.sum_blocks(Profile(1.0, (Spent("MatMul_1", "MatMul", 1.0),))) == ()


def test_parallel_parts_may_be_more_than_the_whole():
    rows = table(profiles.sum_kinds(Profile(1.0, (Spent("a", "MatMul", 3.0), Spent("b", "Add", 1.0)))))
    assert rows == {"MatMul": (3.0, 0.75, 1), "Add": (1.0, 0.25, 1), profiles.BETWEEN: (0.0, 0.0, 0)}
