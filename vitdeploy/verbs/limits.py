"""The limits of a validation, and what they make of its report."""

from __future__ import annotations

import msgspec

from vitdeploy.proof.rules import Thresholds
from vitdeploy.proof.verdict import judge
from vitdeploy.recipe import ValidateConfig
from vitdeploy.report import Report


def choose_thresholds(config: ValidateConfig) -> Thresholds:
    """The limits of a validation; where the interval can't tell, the estimate decides.

    Raises:
        UsageError: VD2003, one is not a number with its unit.
    """
    asked = {name: getattr(config, name) for name in ("max_drop", "min_agreement") if getattr(config, name) is not None}
    return msgspec.convert({**asked, "inconclusive": "estimate"}, Thresholds)


def judge_validation(report: Report, config: ValidateConfig) -> Report:
    """The report with the verdict of its limits: those asked for, and parity of what computes in FP32."""
    verdict = judge([report], choose_thresholds(config))
    return msgspec.structs.replace(report, verdict=verdict if verdict.gates else None)
