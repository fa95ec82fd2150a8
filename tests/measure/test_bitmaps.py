"""Bits of single images: in the order of names, whatever the batches, and back again."""

import numpy as np
import pytest

from vitdeploy.measure.bitmaps import Answers, Seen, compare, compare_parts, pack, read_codes, read_seen, share, unpack
from vitdeploy.record import Calibration
from vitdeploy.report import Group

LABELS = np.array([0, 1, 2, 0, 1])
NAMES = ("e", "c", "a", "d", "b")


def make_logits(best: list[int]) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[best]


def see(places: list[int], **more: object) -> Seen:
    labels = [f"class {LABELS[place]}" for place in places]
    return Seen([NAMES[place] for place in places], [NAMES[place].encode() * 8 for place in places], labels, **more)


def gather(batches: list[list[int]], candidate: list[int], seen_before: frozenset[bytes] = frozenset()):
    answers = Answers("pytorch", seen_before)
    for places in batches:
        logits = {"pytorch": make_logits([LABELS[place] for place in places])}
        logits["engine"] = make_logits([candidate[place] for place in places])
        answers.add(see(places, groups={"time": ["night" if place < 2 else "day" for place in places]}), logits, LABELS[places])
    return answers.finish()


def test_bits_lie_in_the_order_of_names_whatever_the_batches() -> None:
    whole = gather([[0, 1, 2, 3, 4]], [0, 0, 2, 0, 0])  # the second image and the last are wrong
    parts = gather([[4], [3, 2], [1, 0]], [0, 0, 2, 0, 0])
    assert whole == parts
    assert unpack(whole.right["engine"], 5).tolist() == [True, False, False, True, True]  # a b c d e
    assert unpack(whole.right["pytorch"], 5).all()
    assert whole.same == {"engine": whole.right["engine"]}
    assert whole.groups["class"].values == ("class 0", "class 1", "class 2")
    assert read_codes(whole.groups["class"], 5).tolist() == [2, 1, 1, 0, 0]
    assert [whole.groups["time"].values[code] for code in read_codes(whole.groups["time"], 5)] == [
        "day", "day", "night", "day", "night",
    ]  # fmt: skip


def test_the_digest_is_of_names_labels_and_contents() -> None:
    def digest(names=("a", "b"), contents=(b"1" * 8, b"2" * 8), labels=("x", "y")) -> str:
        answers = Answers(None)
        answers.add(Seen(names, contents, labels), {}, None)
        return answers.finish().digest

    others = [digest(names=("a", "c")), digest(contents=(b"1" * 8, b"3" * 8)), digest(labels=("x", "x"))]
    assert len({digest(), *others}) == 4
    assert digest(("b", "a"), (b"2" * 8, b"1" * 8), ("y", "x")) == digest()


def test_numbers_that_are_none_are_neither_right_nor_the_same() -> None:
    answers = Answers("pytorch")
    logits = {"pytorch": make_logits([0, 1]), "engine": np.array([[np.nan, 0, 0], [0, 1, 0]], np.float32)}
    answers.add(Seen(("a", "b"), (b"", b"")), logits, np.array([0, 1]))
    images = answers.finish()
    assert unpack(images.right["engine"], 2).tolist() == unpack(images.same["engine"], 2).tolist() == [False, True]


def test_images_that_set_ranges_are_counted() -> None:
    text = "ZWVlZWVlZWVhYWFhYWFhYQ=="  # eeeeeeee aaaaaaaa
    seen = read_seen(Calibration(source="photos", seen=text))
    assert seen == {b"e" * 8, b"a" * 8}
    assert gather([[0, 1, 2, 3, 4]], [0] * 5, seen).calibrated == 2
    assert gather([[0, 1, 2, 3, 4]], [0] * 5).calibrated == 0
    assert read_seen(None) == frozenset()


@pytest.mark.parametrize("count", [1, 7, 8, 9, 400])
def test_bits_come_back(count) -> None:
    bits = np.random.default_rng(count).random(count) < 0.5
    assert (unpack(pack(bits), count) == bits).all()
    with pytest.raises(ValueError, match="bytes for"):
        unpack(pack(bits), count + 8)


@pytest.mark.parametrize("codes", ["", "AAAA", "AgA="])
def test_damaged_codes_are_refused(codes) -> None:
    with pytest.raises(ValueError):
        read_codes(Group(values=("x", "y"), codes=codes), 1)


def test_shares_and_differences_have_intervals() -> None:
    before, after = np.array([True] * 90 + [False] * 10), np.array([True] * 85 + [False] * 5 + [True] * 4 + [False] * 6)
    metric = compare(before, after)
    assert metric.value == pytest.approx(-1.0)
    assert metric.low < -1 < metric.high
    assert share(before).value == 0.9


def test_each_class_is_compared_on_its_own_images() -> None:
    images = gather([[0, 1, 2, 3, 4]], [0, 0, 2, 1, 0])  # class 0: the second is lost; class 1: both are; class 2: right
    parts = compare_parts(images, "pytorch", "engine")
    assert [(part.value, part.images, part.gained, part.lost) for part in parts] == [
        ("class 0", 2, 0, 1), ("class 1", 2, 0, 2), ("class 2", 1, 0, 0),
    ]  # fmt: skip
    assert [part.difference.value for part in parts] == [-50, -100, 0]
    assert [(part.before.value, part.after.value) for part in parts] == [(1, 0.5), (1, 0), (1, 1)]
    assert [(part.value, part.images) for part in compare_parts(images, "pytorch", "engine", "time")] == [
        ("day", 3),
        ("night", 2),
    ]
    assert compare_parts(images, "pytorch", "engine", "camera") == []
    assert compare_parts(images, "onnx", "engine") == []
