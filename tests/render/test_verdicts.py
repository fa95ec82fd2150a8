"""A verdict in every form, with the names of a hostile model."""

from xml.etree import ElementTree

import pytest

from vitdeploy.render import github, junit, markdown
from vitdeploy.render.verdicts import format_gate, tabulate_verdict
from vitdeploy.report import Gate, Metric, Verdict

HOSTILE = "]]>\n::error::a|<script>\x1b[31m\u202e%0A"


def make_gate(outcome: str = "fail", about: str = HOSTILE, number: int = 0) -> Gate:
    metric = Metric(-1.0, "points", -1.5, -0.6)
    return Gate(about=about, subject="ort", name="max_drop", limit="0.5 pt", metric=metric, outcome=outcome, why=f"why {number}")


def make_verdict(*gates: Gate, inconclusive: str = "fail") -> Verdict:
    limits = {"max_drop": "0.5 pt"}
    return Verdict(outcome="fail", passed=False, limits=limits, inconclusive=inconclusive, gates=gates)


def test_a_gate_in_a_sentence() -> None:
    gate = make_gate(about="vit")
    assert format_gate(gate) == "vit, ort: max_drop 0.5 pt: fail at -1.00 points [-1.50, -0.60]: why 0"
    assert tabulate_verdict(make_verdict(gate)).rows == (("vit, ort", "max_drop 0.5 pt", "-1.00 points [-1.50, -0.60]", "fail"),)


@pytest.mark.parametrize(("policy", "failures", "skipped"), [("fail", 2, 0), ("pass", 1, 1)])
def test_junit_has_a_test_case_a_gate(policy, failures, skipped) -> None:
    gates = (make_gate(), make_gate("inconclusive"), make_gate("pass"))
    tree = ElementTree.fromstring(junit.format_verdict(make_verdict(*gates, inconclusive=policy)))
    suite = tree.find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", str(failures), str(skipped))
    assert (len(suite.findall("testcase/failure")), len(suite.findall("testcase/skipped"))) == (failures, skipped)
    assert {case.get("name") for case in suite.findall("testcase")} == {"max_drop"}
    for case in suite.findall("testcase"):
        assert case.get("classname").isprintable()
        assert case.get("classname").startswith("]]>\\n::error::a|<script>")


def test_no_name_becomes_a_workflow_command() -> None:
    lines = github.format_annotations(make_verdict(make_gate(), make_gate("inconclusive"))).splitlines()
    assert [line.split("::")[1].split()[0] for line in lines] == ["error", "warning"]
    assert all(line.isprintable() for line in lines)
    assert all("%0A" not in line for line in lines)
    assert all(line.count("%250A") == 1 for line in lines)


@pytest.mark.parametrize(("count", "kept"), [(10, 10), (11, 10), (30, 10)])
def test_as_many_annotations_as_github_shows(count, kept) -> None:
    lines = github.format_annotations(make_verdict(*(make_gate(number=number) for number in range(count)))).splitlines()
    assert len(lines) == kept
    assert (f"and {count - 9} more" in lines[-1]) == (count > 10)


def test_a_summary_is_cut_at_a_line_below_githubs_limit() -> None:
    verdict = make_verdict(*(make_gate(about="x" * 500, number=number) for number in range(2000)))
    text = github.format_summary(verdict)
    assert 0.9 * github.LONGEST_SUMMARY < len(text.encode()) <= github.LONGEST_SUMMARY + 100
    assert text.endswith(" |\n\nThe rest was cut off.\n")
    assert github.format_summary(make_verdict(make_gate())) == markdown.format_verdict(make_verdict(make_gate()))


def test_markdown_escapes_and_gives_the_reasons_of_what_does_not_hold() -> None:
    text = markdown.format_verdict(make_verdict(make_gate(), make_gate("pass")))
    assert text.startswith("# Gate: fail\n")
    assert "<script>" not in text
    assert "a\\|&lt;script" in text
    assert text.count("why 0") == 1
