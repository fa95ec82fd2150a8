"""Where inside a model it goes wrong, in one sentence: the first point that breaks, and the likely cause."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vitdeploy.measure.layers import Point
from vitdeploy.onnxfile.points import CONTEXT

LEAST_DB = {"fp32": 60.0, "fp16": 30.0, "bf16": 20.0, "int8": 10.0, "int4": 5.0}
"""Signal to noise of a layer's output from which it is called broken, by the arithmetic. Rounding alone leaves more: see
`tests/verbs/test_tracer.py`, which measures it on the demo's model."""
STEP_DB = 12.0
"""How far a point may fall below all those before it, where rounding errors have added up: a factor of 4 in size."""
OFFSET, OFFSET_DB = 0.8, 20.0
"""Share of the error that is one constant from which it is no rounding, where it is less than 20 dB above the limit."""
_FULL_HALF = 65504.0
_SAME_FACTOR, _ALIKE, _MOST = 0.05, 0.98, 0.5


def find_break(points: Sequence[Point], precision: str) -> Point | None:
    """The first point whose output is not the reference's any more; None where all are as near as their arithmetic allows.

    Args:
        points: In the order of the graph.
        precision: Of the artifact: `Record.precision`.
    """
    limit = _find_limit(precision)
    lowest = math.inf
    for place, point in enumerate(points):
        broken = _is_broken(point, limit, lowest)
        unsure = point.name.endswith((".qkv", CONTEXT))  # a form that is not known is no fault: then what follows is right
        following = points[place + 1] if unsure and place + 1 < len(points) else None
        if broken and (following is None or _is_broken(following, limit, lowest)):
            return point
        if not broken:
            lowest = min(lowest, point.sqnr_db)
    return None


def explain_break(point: Point, precision: str) -> str:
    """``blocks.9.mlp.fc2 is the first that breaks: ...``."""
    return f"{point.name} is the first that breaks ({_tell_sqnr(point)}): {_find_cause(point, precision)}"


def _find_limit(precision: str) -> float:
    return next(limit for name, limit in LEAST_DB.items() if precision.startswith(name) or name == "int4")


def _is_broken(point: Point, limit: float, lowest: float) -> bool:
    value = point.sqnr_db
    if math.isnan(value):
        return not point.finite or point.difference > 0
    fell = math.isfinite(lowest) and value < min(lowest - STEP_DB, limit + STEP_DB)
    return value < limit or fell or (point.offset_share > OFFSET and value < limit + OFFSET_DB)


def _tell_sqnr(point: Point) -> str:
    return f"{point.sqnr_db:.1f} dB" if math.isfinite(point.sqnr_db) else "not finite"


def _find_cause(point: Point, precision: str) -> str:
    """What the error looks like; the first that fits."""
    if not point.finite:
        seen = f"the reference's largest value is {point.largest_reference:.3g}"
        if precision == "fp16":
            return f"NaN or infinite: FP16 overflow, FP16 holds no more than {_FULL_HALF:,.0f} and {seen}"
        return f"NaN or infinite, {seen}"
    factor, cosine = point.fit_factor()
    if abs(factor - 1) > _SAME_FACTOR and cosine > _ALIKE:
        return f"its values move {factor:.3g} times as far as the reference's: a wrong scale"
    if point.offset_share > _MOST:
        return f"{100 * point.offset_share:.0f} % of the error is the same for all tokens and images: a bias is missing or wrong"
    if point.largest < 0.7 * point.largest_reference:
        return (
            f"no value is beyond {point.largest:.3g}, the reference's reach {point.largest_reference:.3g}: "
            "cut off by a range that is too narrow, or a wrong scale"
        )
    token, share = point.worst_token
    if share > _MOST:
        return f"token {token} has {100 * share:.0f} % of the error"
    return "spread over all tokens: wrong weights, a wrong scale, or rounding that is too coarse"
