"""Parts of the images: a model that is better on the whole and worse on one class fails, and chance alone does not."""

import numpy as np
import pytest

from vitdeploy.errors import UsageError
from vitdeploy.measure.bitmaps import Answers, Seen
from vitdeploy.proof.rules import SliceLimits, Thresholds
from vitdeploy.proof.slices import find_worse
from vitdeploy.proof.verdict import judge
from vitdeploy.report import Report, Row

CLASSES, EACH = 10, 100
LABELS = np.repeat(np.arange(CLASSES), EACH)


def make_report(right_before: np.ndarray, right_after: np.ndarray, labels: np.ndarray = LABELS, **groups: list[str]) -> Report:
    """Of a data set in which a network is right or wrong as is said, class by class."""
    answers = Answers("pytorch")
    classes = int(labels.max()) + 1
    logits = {
        name: np.eye(classes)[np.where(right, labels, (labels + 1) % classes)]
        for name, right in (("pytorch", right_before), ("engine", right_after))
    }
    names = [f"{number:05d}" for number in range(len(labels))]
    answers.add(Seen(names, [b""] * len(names), [str(label) for label in labels], groups), logits, labels)
    rows = (Row("pytorch", {}), Row("engine", {}))
    return Report(title="validate", reference="pytorch", rows=rows, settings={"artifact": "vit"}, images=answers.finish())


def lose(**counts: int) -> tuple[np.ndarray, np.ndarray]:
    """Nine of ten right before; of class N so many more (or fewer) after."""
    before = np.tile(np.arange(EACH) < 90, CLASSES)
    after = before.copy()
    for name, count in counts.items():
        start = int(name.removeprefix("class_")) * EACH
        after[start : start + EACH] = np.arange(EACH) < 90 + count
    return before, after


def test_better_on_the_whole_and_worse_on_one_class_fails() -> None:
    report = make_report(*lose(class_3=-30, class_0=8, class_1=8, class_2=8, class_4=8, class_5=8))
    (gate,) = judge([report], Thresholds(slice={"classes": SliceLimits(max_drop="5 pt")})).gates
    assert (gate.name, gate.limit, gate.outcome) == ("slice.classes.max_drop", "5 pt", "fail")
    assert gate.why.startswith("1 of 10 values of class miss the limit: class 3: -30.0 points [")
    assert gate.metric.value == pytest.approx(-30.0)


def test_one_value_is_a_slice_of_its_own() -> None:
    before, after = lose(class_3=-30)
    time = ["night" if label == 3 else "day" for label in LABELS]
    report = make_report(before, after, time=time)
    asked = {name: SliceLimits(column="time", value=name, max_drop="5 pt") for name in ("night", "day")}
    gates = {gate.name: gate for gate in judge([report], Thresholds(slice=asked)).gates}
    assert {name: gate.outcome for name, gate in gates.items()} == {
        "slice.night.max_drop": "fail",
        "slice.day.max_drop": "pass",
    }
    assert gates["slice.night.max_drop"].why.startswith("misses the limit: time night: -30.0 points")


def test_a_slice_of_few_images_passes_unless_certainty_is_asked() -> None:
    report = make_report(*lose(class_3=-6))
    for inconclusive, outcome in (("pass", "pass"), ("fail", "inconclusive")):
        asked = SliceLimits(max_drop="5 pt", inconclusive=inconclusive)
        (gate,) = judge([report], Thresholds(slice={"classes": asked})).gates
        assert gate.outcome == outcome
        assert "class 3: -6.0 points" in gate.why
    (gate,) = judge([make_report(*lose())], Thresholds(slice={"c": SliceLimits(max_drop="20 pt", inconclusive="fail")})).gates
    assert gate.outcome == "pass"


def test_shares_of_a_slice_are_judged_too() -> None:
    report = make_report(*lose(class_3=-30))
    asked = SliceLimits(min_top1="80 %", min_agreement="85 %")
    gates = judge([report], Thresholds(slice={"classes": asked})).gates
    assert [(gate.name, gate.outcome) for gate in gates] == [
        ("slice.classes.min_top1", "fail"),
        ("slice.classes.min_agreement", "fail"),
    ]
    assert "class 3: 60.0 % [" in gates[0].why
    assert "class 3: 70.0 % [" in gates[1].why


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (SliceLimits(column="time", max_drop="1 pt"), "the data have no column 'time'; there is: class"),
        (SliceLimits(value="cat", max_drop="1 pt"), "no image has class 'cat'"),
    ],
)
def test_a_slice_that_is_not_there_fails(asked, why) -> None:
    (gate,) = judge([make_report(*lose())], Thresholds(slice={"x": asked})).gates
    assert (gate.outcome, gate.why) == ("fail", why)


def test_without_answers_of_single_images_a_slice_fails() -> None:
    (gate,) = judge([Report(title="validate")], Thresholds(slice={"x": SliceLimits(max_drop="1 pt")})).gates
    assert gate.outcome == "fail"
    assert "labelled images (--data)" in gate.why


def test_a_slice_must_ask_for_something() -> None:
    with pytest.raises(UsageError, match="asks for nothing"):
        SliceLimits()
    with pytest.raises(UsageError, match="max_drop is 'much'"):
        SliceLimits(max_drop="much")


@pytest.mark.slow
def test_of_many_slices_that_lose_just_the_limit_few_runs_fail() -> None:
    """A hundred classes of 200 images, each at the margin: one run in twenty may fail; the worst alone would fail nearly all."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 200)
    limits = Thresholds(slice={"classes": SliceLimits(max_drop="5 pt")})
    failed = alone = 0
    for _ in range(40):
        kinds = generator.choice(3, len(labels), p=(0.02, 0.07, 0.91))  # gained, lost, equal
        report = make_report(kinds != 0, kinds != 1, labels)
        (gate,) = judge([report], limits).gates
        failed += gate.outcome == "fail"
        one = Thresholds(slice={"one": SliceLimits(value=gate.why.split("class ")[-1].split(":")[0], max_drop="5 pt")})
        alone += judge([report], one).gates[0].outcome == "fail"
    assert failed <= 5  # 40 runs at 5 %: more than 5 in one of 70
    assert alone >= 30


def test_classes_that_are_worse_by_more_than_chance_are_told_and_no_others() -> None:
    report = make_report(*lose(class_3=-30, class_7=-40, class_1=-3, class_2=8))
    assert [part.value for part in find_worse(report.images, "pytorch", "engine")] == ["7", "3"]
    assert find_worse(make_report(*lose(class_1=-3)).images, "pytorch", "engine") == []
    assert find_worse(make_report(*lose(class_2=8)).images, "pytorch", "engine") == []


@pytest.mark.slow
def test_where_no_class_is_worse_one_run_in_twenty_at_most_calls_one_so() -> None:
    rng, runs, called = np.random.default_rng(3), 200, 0
    before = np.tile(np.arange(EACH) < 90, CLASSES)
    for _ in range(runs):
        report = make_report(before, before ^ (rng.random(len(before)) < np.where(before, 0.01, 0.09)))  # as many either way
        called += bool(find_worse(report.images, "pytorch", "engine"))
    assert called / runs <= 0.05
