"""Numbers as people read them."""

import math

import pytest

from vitdeploy.render import tables
from vitdeploy.report import Metric, Report, Row


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (Metric(0.931, "share", 0.92, 0.941), "93.1 % [92.0, 94.1]"),
        (Metric(1.2345, "ms"), "1.23 ms"),
        (Metric(2.41, "ratio", 2.38, 2.44), "2.41x [2.38, 2.44]"),
        (Metric(math.nan, "ms"), "NaN ms"),
        (Metric(math.nan, "share", math.nan, math.nan), "NaN % [NaN, NaN]"),
        (Metric(math.inf, "dB"), "inf dB"),
        (Metric(-math.inf), "-inf"),
        (Metric(0.9997, "share"), "99.97 %"),
        (Metric(1.0, "share", 0.9, 1.0), "100.0 % [90.0, 100.0]"),
        (Metric(0.0, "share"), "0.0 %"),
        (Metric(0.0004, "share"), "0.04 %"),
        (Metric(10000, "count"), "10,000"),
        (Metric(0.0), "0"),
        (Metric(3.2e-8), "3.20e-08"),
        (Metric(1 - 1e-6), "0.9999990"),
        (Metric(1.0), "1.00"),
        (Metric(1234.5, "ms"), "1,234 ms"),
        (Metric(0.01234, "ms", 0.0123, 0.0124), "0.0123 ms [0.0123, 0.0124]"),
        (Metric(-0.12, "points", -0.3, 0.1), "-0.12 points [-0.30, 0.10]"),
        (Metric(61.25, "dB"), "61.2 dB"),
        (Metric(5, "furlongs"), "5.00 furlongs"),
    ],
)
def test_metric(number, text):
    assert tables.format_metric(number) == text


def test_columns_are_all_metrics_in_the_order_of_their_first_appearance():
    rows = (Row("a", {"p50": Metric(1, "ms")}), Row("b", {"p50": Metric(2, "ms"), "speed_up": Metric(2, "ratio")}))
    table = tables.tabulate_report(Report(title="bench", rows=rows))
    assert table.headings == ("subject", "p50", "speed up")
    assert table.rows == (("a", "1.00 ms", ""), ("b", "2.00 ms", "2.00x"))


def test_settings_in_words():
    assert tables.format_setting({"a": None, "b": [1, 2.5], "c": True}) == "a = none, b = 1, 2.5, c = True"


@pytest.mark.parametrize(("value", "text"), [(0.02841, "0.0284"), (5.717416, "5.72"), (1136.48, "1,136"), (0.0, "0")])
def test_short(value, text):
    assert tables.format_number(value) == text
