"""A gate's verdict for GitHub's workflows: annotations as workflow commands, and the job's summary.

Source: GitHub's documentation, "Workflow commands for GitHub Actions" (escapes; at most 10 annotations of a kind a step; a
summary of more than 1 MiB is dropped).
"""

from __future__ import annotations

from vitdeploy.errors import printable
from vitdeploy.render import markdown
from vitdeploy.render.verdicts import format_gate
from vitdeploy.report import Verdict

MOST_ANNOTATIONS = 10
LONGEST_SUMMARY = 1_000_000  # bytes; GitHub's own limit is 1,048,576


def format_annotations(verdict: Verdict) -> str:
    """A line a limit that does not hold, the failed ones as errors; ends with a line break where there is any."""
    lines = []
    for kind, outcome in (("error", "fail"), ("warning", "inconclusive")):
        gates = [gate for gate in verdict.gates if gate.outcome == outcome]
        kept = gates if len(gates) <= MOST_ANNOTATIONS else gates[: MOST_ANNOTATIONS - 1]
        texts = [format_gate(gate) for gate in kept]
        texts += [f"and {len(gates) - len(kept)} more"] if len(kept) < len(gates) else []
        lines += [f"::{kind} title=vitdeploy gate::{_escape(text)}\n" for text in texts]
    return "".join(lines)


def format_summary(verdict: Verdict) -> str:
    """The verdict as Markdown, shorter than what GitHub shows."""
    text = markdown.format_verdict(verdict)
    cut = text.encode()[:LONGEST_SUMMARY].decode(errors="ignore")
    return text if cut == text else cut[: cut.rindex("\n") + 1] + "\nThe rest was cut off.\n"


def _escape(text: str) -> str:
    return printable(text).replace("%", "%25")
