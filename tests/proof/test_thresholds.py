"""Limits hold what their reasons say."""

import numpy as np
import pytest

from vitdeploy.proof.engine import distance
from vitdeploy.proof.thresholds import LIMITS


@pytest.mark.parametrize("arithmetic", LIMITS)
@pytest.mark.parametrize("wrong", [1, 2, 8], ids=lambda wrong: f"{wrong} of 8 rows")
def test_rows_that_have_nothing_in_common_are_beyond_every_limit(arithmetic, wrong) -> None:
    random = np.random.default_rng(0)
    expected = random.standard_normal((8, 1000)).astype(np.float32)
    outputs = expected.copy()
    outputs[:wrong] = random.standard_normal((wrong, 1000))
    assert distance(outputs, expected) > LIMITS[arithmetic]


def test_coarser_arithmetic_may_be_further_off() -> None:
    assert LIMITS["fp32"] < LIMITS["fp16"] < LIMITS["bf16"] < LIMITS["int8"] < LIMITS["fp8"] < 0.5
    assert LIMITS["fp16"] > 2**-10 > LIMITS["fp32"] / 2  # one step of the mantissa
