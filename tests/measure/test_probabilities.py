"""Softmax and sigmoid: exact where floats are small, and never more than 1 or a warning where they are large."""

import msgspec
import numpy as np
import pytest

from vitdeploy.measure.probabilities import compute_probabilities, sigmoid, softmax
from vitdeploy.spec import ModelSpec

SPEC = ModelSpec(name="m", classes=3)


def test_softmax_neither_overflows_nor_hides_a_nan():
    shares = softmax(np.array([3e38, 3e38, -3e38], np.float32))
    np.testing.assert_array_equal(shares, [0.5, 0.5, 0])
    assert np.isnan(softmax(np.array([np.nan, 0], np.float32))).all()


def test_sigmoid_neither_overflows_nor_hides_a_nan():
    shares = sigmoid(np.array([3e38, -3e38, 0, 2, -2, np.nan], np.float32))
    np.testing.assert_array_equal(shares[:3], [1, 0, 0.5])
    np.testing.assert_allclose(shares[3:5], [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))], rtol=1e-15)
    assert np.isnan(shares[5])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, softmax),
        ({"problem": "multi_label"}, sigmoid),
        ({"probabilities": True}, np.asarray),
        ({"problem": "multi_label", "probabilities": True}, np.asarray),
    ],
)
def test_what_the_model_says_by_its_task(fields, expected):
    output = np.array([[0.2, 0.7, 0.1]])
    np.testing.assert_array_equal(compute_probabilities(output, msgspec.structs.replace(SPEC, **fields)), expected(output))
