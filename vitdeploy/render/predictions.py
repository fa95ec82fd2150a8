"""What a model says of images, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitdeploy.render.tables import Table

if TYPE_CHECKING:
    from vitdeploy.verbs.predictor import Prediction

_SHOWN = 8  # numbers of an embedding


def tabulate_predictions(predictions: Sequence[Prediction]) -> Table:
    """One line an image and class, the most probable first; or one an image with its numbers."""
    if any(item.values for item in predictions):
        return Table("", ("image", "numbers"), tuple((item.image, _describe_numbers(item)) for item in predictions))
    rows = tuple(
        (item.image if not place else "", score.label, f"{score.probability * 100:.1f} %")
        for item in predictions
        for place, score in enumerate(item.classes)
    )
    return Table("", ("image", "class", "probability"), rows)


def _describe_numbers(item: Prediction) -> str:
    """The first numbers, each with its name where there are names."""
    shown = [f"{value:.4g}" for value in item.values[:_SHOWN]]
    shown = [f"{name} {value}" for name, value in zip(item.names, shown, strict=False)] or shown
    more = len(item.values) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
