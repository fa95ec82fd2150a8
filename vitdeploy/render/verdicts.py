"""A gate's verdict in words and as a table, before anything decides how it looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.render.tables import Table, format_metric

if TYPE_CHECKING:
    from vitdeploy.report import Gate, Verdict


def name_limit(gate: Gate) -> str:
    """``max_drop 0.5 pt``; the name alone, where nothing was asked in numbers."""
    return f"{gate.name} {gate.limit}".rstrip()


def format_gate(gate: Gate) -> str:
    """One limit in a sentence: ``vit, onnxruntime: max_drop 0.5 pt: fail at -1.20 points [-1.9, -0.6]: ...``."""
    where = ", ".join(part for part in (gate.about, gate.subject) if part)
    number = "" if gate.metric is None else f" at {format_metric(gate.metric)}"
    return f"{where}{': ' if where else ''}{name_limit(gate)}: {gate.outcome}{number}: {gate.why}"


def tabulate_verdict(verdict: Verdict) -> Table:
    """A gate's limits, a line each: what was asked, what was measured, and what became of it."""
    rows = tuple(
        (
            ", ".join(part for part in (gate.about, gate.subject) if part),
            name_limit(gate),
            "" if gate.metric is None else format_metric(gate.metric),
            gate.outcome,
        )
        for gate in verdict.gates
    )
    return Table(f"gate: {verdict.outcome}", ("subject", "limit", "measured", "outcome"), rows)


def summarise(verdict: Verdict) -> list[str]:
    """A verdict in a line, and a line for each limit that does not hold, or of which the interval could not tell."""
    lines = [format_gate(gate) for gate in verdict.gates if gate.outcome != "pass" or gate.needed is not None]
    limits = ", ".join(dict.fromkeys(name_limit(gate) for gate in verdict.gates))
    return [f"verdict: {verdict.outcome} ({limits})", *lines]
