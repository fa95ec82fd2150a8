"""Which point is the first that breaks, and what its error looks like."""

import numpy as np
import pytest

from vitdeploy.measure.layers import Point
from vitdeploy.proof.breaks import explain_break, find_break

GENERATOR = np.random.default_rng(0)
REFERENCE = GENERATOR.normal(size=(4, 6, 8)) + np.arange(8)


def make(name: str, candidate: np.ndarray, forms=None) -> Point:
    point = Point(name)
    point.add(forms or [[REFERENCE]], candidate)
    return point


def blur(db: float) -> np.ndarray:
    return REFERENCE + GENERATOR.normal(size=REFERENCE.shape) * np.sqrt((REFERENCE**2).mean()) * 10 ** (-db / 20)


ARITHMETIC = [("fp32", 90, False), ("fp32", 50, True), ("fp16", 50, False), ("fp16", 20, True), ("int8", 20, False)]


@pytest.mark.parametrize(("precision", "db", "broken"), [*ARITHMETIC, ("int8-dynamic", 5, True)])
def test_what_counts_as_broken_depends_on_the_arithmetic(precision, db, broken) -> None:
    found = find_break([make("blocks.0", blur(db))], precision)
    assert (found is not None) == broken


def test_a_sharp_fall_is_a_break_and_a_slow_one_is_not() -> None:
    slow = [make(f"blocks.{number}", blur(45 - 5 * number)) for number in range(6)]
    assert find_break(slow, "int8") is None
    assert find_break([make("blocks.0", blur(45)), make("blocks.1", blur(18))], "int8").name == "blocks.1"


def test_a_form_that_is_not_known_is_no_fault_where_what_follows_is_right() -> None:
    odd, right = make("blocks.0.attn.qkv", blur(0)), make("blocks.0.attn.proj", blur(90))
    wrong = make("blocks.0", blur(0))
    assert find_break([odd, right], "fp32") is None
    assert find_break([odd, wrong], "fp32") is odd


def test_equal_zeros_are_no_break() -> None:
    point = Point("blocks.0")
    point.add([[np.zeros((2, 3, 4))]], np.zeros((2, 3, 4)))
    assert find_break([point], "fp32") is None


MEAN = REFERENCE.mean((0, 1))
NOISE = GENERATOR.normal(size=REFERENCE.shape)
CAUSES = {
    "overflow": (REFERENCE, np.where(REFERENCE > 8, np.inf, REFERENCE), "NaN or infinite: FP16 overflow"),
    "scale": (REFERENCE, MEAN + 1.5 * (REFERENCE - MEAN), "move 1.5 times as far as the reference's: a wrong scale"),
    "bias": (REFERENCE, REFERENCE - np.linspace(1, 2, 8), "100 % of the error is the same for all tokens and images: a bias"),
    "range": (3 * NOISE, np.clip(3 * NOISE, -1, 1), "cut off by a range that is too narrow"),
    "token": (REFERENCE, REFERENCE + np.where(np.arange(6)[:, None] == 2, 5 * NOISE, 0), "token 2 has 100 % of the error"),
    "noise": (REFERENCE, REFERENCE + 3 * NOISE, "spread over all tokens"),
}


@pytest.mark.parametrize(("reference", "candidate", "cause"), CAUSES.values(), ids=CAUSES)
def test_the_cause_is_told_by_what_the_error_looks_like(reference, candidate, cause) -> None:
    said = explain_break(make("blocks.9.mlp.fc2", candidate, [[reference]]), "fp16")
    assert said.startswith("blocks.9.mlp.fc2 is the first that breaks (")
    assert cause in said
