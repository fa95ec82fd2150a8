"""A gate among other tests: copy it beside them, and run pytest. Each limit that does not hold is a line of the failure."""

import os
from pathlib import Path

import vitdeploy as vd
from vitdeploy.verbs.gatekeeper import read_thresholds

MODEL = Path(os.environ.get("MODEL", "vit-int8"))
IMAGES = os.environ.get("IMAGES", "photos")
BASELINE = Path(os.environ.get("BASELINE", "baseline.json"))


def test_the_model_may_be_merged() -> None:
    """Accuracy and latency, measured now, against the limits of gate.toml and against the baseline."""
    config = vd.GateConfig(
        thresholds=read_thresholds(Path("gate.toml")),
        validate=vd.ValidateConfig(data=IMAGES),
        baseline=BASELINE,
    )
    verdict = vd.gate([MODEL], config)
    assert verdict.passed, "\n".join(f"{gate.subject}: {gate.name} {gate.limit}: {gate.why}" for gate in verdict.gates)
