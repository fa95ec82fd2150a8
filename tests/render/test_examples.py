"""Worst images and classes as tables: the worst first, and no column that says nothing."""

import base64

import numpy as np

from vitdeploy.measure.bitmaps import pack
from vitdeploy.render.examples import format_answer, tabulate_examples
from vitdeploy.report import Answer, Group, Images, Metric, Report, WorstImage

WORST = tuple(
    WorstImage(f"{name}.png", apart, "cat", Answer("cat", Metric(0.931, "share")), Answer("dog", Metric(0.5, "share")))
    for name, apart in (("a", 2.5), ("b", 0.0312), ("c", 0.001))
)


def make_report(**images: object) -> Report:
    return Report(title="validate", reference="pytorch", images=Images(digest="", count=6, **images))


def test_the_worst_images_with_both_answers() -> None:
    (table,) = tabulate_examples(make_report(worst={"engine": WORST}), most=2)
    assert table.title == "worst images: engine"
    assert table.headings == ("image", "apart", "label", "pytorch", "engine")
    assert table.rows == (
        ("a.png", "2.50", "cat", "cat 93.1 %", "dog 50.0 %"),
        ("b.png", "0.0312", "cat", "cat 93.1 %", "dog 50.0 %"),
    )


def test_what_is_not_known_has_no_column() -> None:
    (table,) = tabulate_examples(make_report(worst={"engine": (WorstImage("a.png", 0.4),)}))
    assert (table.headings, table.rows) == (("image", "apart"), (("a.png", "0.400"),))


def test_the_classes_that_lost_most_first_and_none_that_gained() -> None:
    codes = np.array([0, 0, 1, 1, 2, 2], "<u2").tobytes()
    groups = {"class": Group(values=("x", "y", "z"), codes=base64.b64encode(codes).decode())}
    right = {
        name: pack(np.array(bits, bool)) for name, bits in {"pytorch": [1, 1, 1, 1, 0, 1], "engine": [1, 0, 0, 0, 1, 1]}.items()
    }
    (table,) = tabulate_examples(make_report(groups=groups, right=right, same={"engine": right["engine"]}))
    assert table.title == "classes that lost most: engine"
    assert [row[:2] for row in table.rows] == [("y", "2"), ("x", "2")]
    assert table.rows[0][2].startswith("100.0 % [") and table.rows[0][4].startswith("-100.00 points [")


def test_numbers_are_no_shares() -> None:
    assert format_answer(Answer("0", Metric(0.5))) == "0: 0.500"
    assert format_answer(None) == ""
    assert list(tabulate_examples(Report(title="bench"))) == []
