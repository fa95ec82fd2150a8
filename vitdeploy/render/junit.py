"""A gate's verdict as JUnit XML: one test case a limit, for the test tabs of CI servers.

Source: the schema of Jenkins' xunit plugin (junit-10.xsd), whose elements and attributes GitLab and GitHub's readers share.
"""

from __future__ import annotations

from xml.etree import ElementTree

from vitdeploy.errors import printable
from vitdeploy.render.verdicts import format_gate
from vitdeploy.report import Gate, Verdict


def format_verdict(verdict: Verdict) -> str:
    """The whole document; ends with a line break."""
    failed = sum(_is_failure(gate, verdict) for gate in verdict.gates)
    skipped = sum(gate.outcome == "inconclusive" for gate in verdict.gates if not _is_failure(gate, verdict))
    counts = {"tests": str(len(verdict.gates)), "failures": str(failed), "errors": "0"}
    suites = ElementTree.Element("testsuites", {"name": "vitdeploy gate", **counts})
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "vitdeploy gate", **counts, "skipped": str(skipped)})
    for gate in verdict.gates:
        place = ".".join(part for part in (gate.about, gate.subject) if part) or "gate"
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": printable(place), "name": printable(gate.name), "time": "0"}
        )
        text = printable(format_gate(gate))
        if _is_failure(gate, verdict):
            failure = ElementTree.SubElement(case, "failure", {"message": text, "type": gate.outcome})
            failure.text = text
        elif gate.outcome == "inconclusive":
            ElementTree.SubElement(case, "skipped", {"message": text})
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, "unicode", xml_declaration=True) + "\n"


def _is_failure(gate: Gate, verdict: Verdict) -> bool:
    return gate.outcome == "fail" or (gate.outcome == "inconclusive" and verdict.inconclusive == "fail")
