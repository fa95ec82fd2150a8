"""Schedules of token merging: what they come to for a model, and what is none."""

import pytest

from vitdeploy.errors import UsageError
from vitdeploy.schedule import count_mergeable, resolve_schedule


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("2", (2, 2, 2, 0)),
        ("1:3", (0, 3, 0, 0)),
        ("0-1:3", (3, 3, 0, 0)),
        ("2:1, 0:4", (4, 0, 1, 0)),
        ("0:7,1:4,2:2", (7, 4, 2, 0)),
    ],
)
def test_a_schedule_is_a_number_a_block(text, counts):
    assert resolve_schedule(text, 4, 17, 1) == counts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no schedule"),
        ("0", "no schedule"),
        ("-1", "no schedule"),
        ("1:2:3", "no schedule"),
        ("1-0:2", "blocks that can merge are 0 to 2"),
        ("3:1", "blocks that can merge are 0 to 2"),
        ("1,1:2", "names block 1 twice"),
        ("0:8", "block 0 has 17 tokens, of which at most 7 can be merged"),
        ("0:7,1:5", "block 1 has 10 tokens, of which at most 4 can be merged"),
    ],
)
def test_what_is_no_schedule_of_the_model_is_refused(text, said):
    with pytest.raises(UsageError, match=said) as caught:
        resolve_schedule(text, 4, 17, 1)
    assert caught.value.code == "VD2003"
    assert caught.value.fix


def test_one_block_merges_nothing():
    with pytest.raises(UsageError, match="leave it out"):
        resolve_schedule("1", 1, 17, 1)


@pytest.mark.parametrize(("tokens", "most"), [(16, 7), (15, 7), (3, 1), (2, 0), (0, 0)])
def test_one_token_of_the_first_set_stays(tokens, most):
    assert count_mergeable(tokens) == most
