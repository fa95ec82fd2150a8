"""Whether an answer depends on anything but its image: on what ran before it, or on the images beside it in a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.report import Metric

Array = NDArray[Any]
LOOKED_AT = 4
"""Images that are run again: a fault of this kind is one for all of them."""


def measure_steadiness(run: Callable[[Array], Array], tensor: Array) -> dict[str, Metric]:
    """Run some images twice together, and each alone.

    Args:
        run: Gives the main output, float [n, ...], of n images.
        tensor: Images as the model takes them, at least one; the first `LOOKED_AT` count.

    Returns:
        ``repeat_difference``: the largest of any output between two runs of the same images; ``company_difference``: between an
        image alone and in company. Both in the output's unit, and 0 where nothing differs.
    """
    some = tensor[:LOOKED_AT]
    first, again = run(some), run(some)
    alone = np.concatenate([run(some[place : place + 1]) for place in range(len(some))])
    return {
        "repeat_difference": Metric(_find_largest(first, again)),
        "company_difference": Metric(_find_largest(first, alone)),
    }


def _find_largest(one: Array, other: Array) -> float:
    """Of two arrays; NaN where one of them has a number that is none."""
    with np.errstate(invalid="ignore"):
        return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max())
