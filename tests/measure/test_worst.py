"""The worst images: the farthest of all, whatever the batches, and none that rounding alone has moved."""

import math

import msgspec
import numpy as np
import pytest

from vitdeploy.measure.worst import MOST, NEAR, Worst
from vitdeploy.spec import ModelSpec

SPEC = ModelSpec(name="m", classes=3, labels=("cat", "dog", "owl"))


def find(spec: ModelSpec, a, b, *, labels=None, batch: int = 1000):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    worst = Worst(spec)
    for start in range(0, len(a), batch):
        part = slice(start, start + batch)
        names = [f"{place:04}.png" for place in range(len(a))[part]]
        worst.add(names, a[part], b[part], None if labels is None else np.asarray(labels)[part])
    return worst.finish()


def divergence(a, b) -> float:
    """Of two lists of logits, as the definition has it."""
    p, q = ([math.exp(x) / sum(map(math.exp, row)) for x in row] for row in (a, b))
    return sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))


def test_the_farthest_of_all_whatever_the_batches() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200, 3)).astype(np.float32)
    b = a + rng.normal(size=(200, 3)).astype(np.float32) * rng.random((200, 1)).astype(np.float32)
    order = sorted(range(200), key=lambda place: -divergence(a[place].tolist(), b[place].tolist()))
    whole = find(SPEC, a, b)
    assert [image.name for image in whole] == [f"{place:04}.png" for place in order[:MOST]]
    assert whole[0].apart == pytest.approx(divergence(a[order[0]].tolist(), b[order[0]].tolist()), rel=1e-5)
    assert find(SPEC, a, b, batch=7) == whole


def test_both_answers_and_the_label_by_name() -> None:
    (image,) = find(SPEC, [[3.0, 0, 0]], [[0, 2.0, 0]], labels=[2])
    shares = [math.exp(3) / (math.exp(3) + 2), math.exp(2) / (math.exp(2) + 2)]
    assert (image.label, image.expected.name, image.given.name) == ("owl", "cat", "dog")
    assert [side.value.value for side in (image.expected, image.given)] == pytest.approx(shares)
    assert image.given.value.unit == "share"
    plain = msgspec.structs.replace(SPEC, labels=())
    assert find(plain, [[3.0, 0, 0]], [[0, 2.0, 0]])[0].given.name == "1"


def test_probabilities_are_taken_as_they_are() -> None:
    spec = msgspec.structs.replace(SPEC, probabilities=True)
    (image,) = find(spec, [[0.7, 0.2, 0.1]], [[0.2, 0.7, 0.1]])
    assert image.apart == pytest.approx(0.7 * math.log(3.5) + 0.2 * math.log(2 / 7), rel=1e-5)
    assert image.given.value.value == pytest.approx(0.7)


def test_what_rounding_leaves_is_none_unless_the_answer_changed() -> None:
    assert find(SPEC, [[1.00001, 1, 0]], [[1.00002, 1, 0]]) == ()
    (image,) = find(SPEC, [[1.00001, 1, 0]], [[1, 1.00001, 0]])
    assert image.apart < NEAR and image.given.name == "dog"


def test_each_task_has_its_distance() -> None:
    several = msgspec.structs.replace(SPEC, problem="multi_label")
    (image,) = find(several, [[0.0, 0, 0]], [[0, 1.0, -2.0]])
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))
    assert image.apart == pytest.approx((p - 0.5 + 0.5 - q) / 3, rel=1e-5)
    assert (image.given.name, image.given.value.value) == ("owl", pytest.approx(q))
    numbers = msgspec.structs.replace(SPEC, problem="regression", labels=())
    (image,) = find(numbers, [[5.0, 5.0, 5.0], [9.0, 9.0, 9.0]], [[5.0, 4.0, 5.5], [9.0, 9.0, 9.0001]])
    assert (image.name, image.apart, image.given.name, image.given.value.value) == ("0000.png", 1, "1", 4)
    vectors = msgspec.structs.replace(SPEC, head="none", classes=0, labels=())
    (image,) = find(vectors, [[1.0, 0, 0], [1.0, 0, 0]], [[2.0, 0, 0], [3.0, 4.0, 0]])
    assert (image.name, image.expected) == ("0001.png", None)
    assert image.apart == pytest.approx(0.4)


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_what_is_no_number_is_farthest(problem) -> None:
    spec = msgspec.structs.replace(SPEC, problem=problem)
    images = find(spec, [[0.0, 9, 0], [0.0, 1, 2]], [[9.0, 0, 0], [0.0, math.nan, 2]])
    assert [image.name for image in images] == ["0001.png", "0000.png"]
    assert math.isinf(images[0].apart) and images[0].given is None
