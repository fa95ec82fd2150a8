"""How often the gate is right: false alarms and misses at the margin, and how many images a good model needs.

    python -m tests.benchmarks.gate_power

A simulation, not a measurement of this machine: for each setting thousands of evaluations are drawn from the multinomial
distribution of (gained, lost, equal) images, and each goes through the same interval and verdict as `vitdeploy gate`.
"""

import numpy as np

from tests.benchmarks import results
from tests.benchmarks.figures import GatePower, PowerRow
from vitdeploy.measure.statistics import paired_difference
from vitdeploy.proof.rules import Thresholds
from vitdeploy.proof.verdict import judge
from vitdeploy.report import Metric, Report, Row, this_machine

HERE = this_machine()
MARGIN = 0.5
LOSSES = {"nothing": 0.0, "exactly the limit": MARGIN, "twice the limit": 2 * MARGIN}
IMAGES = (500, 2000, 5000, 10_000, 50_000)
DISCORDANT = (0.01, 0.02, 0.05)


def draw(images: int, discordant: float, loss: float, draws: int) -> PowerRow:
    """Verdicts on models that truly lose so many points."""
    lost = (discordant + loss / 100) / 2
    shares = (discordant - lost, lost, 1 - discordant)
    counts = np.random.default_rng(0).multinomial(images, shares, size=draws)
    outcomes = {"pass": 0, "fail": 0, "inconclusive": 0}
    for (gained, missed, _), repeats in zip(*np.unique(counts, axis=0, return_counts=True), strict=True):
        low, high = paired_difference(int(gained), int(missed), images)
        metric = Metric(100 * (gained - missed) / images, "points", 100 * low, 100 * high)
        report = Report(title="validate", rows=(Row("drawn", {"top1_difference": metric}),), machine=HERE)
        outcomes[judge([report], Thresholds(max_drop=f"{MARGIN} pt")).outcome] += int(repeats)
    return PowerRow(images, discordant, loss, *(count / draws for count in outcomes.values()))


def main() -> None:
    """Simulate and store."""
    options = results.parser(__doc__).parse_args()
    draws = 100 if options.quick else 4000
    rows = []
    for loss in LOSSES.values():
        for discordant in DISCORDANT:
            if discordant < loss / 100:
                continue
            rows += [draw(images, discordant, loss, draws) for images in IMAGES]
            results.say(f"{loss} points lost, {100 * discordant:g} % discordant")
    results.store("gate_power", GatePower(MARGIN, draws, rows), options)


if __name__ == "__main__":
    main()
