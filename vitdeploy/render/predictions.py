"""What a model says of images, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vitdeploy.render.tables import Table, tabulate_pairs

if TYPE_CHECKING:
    from vitdeploy.verbs.predictor import Prediction, Summary

_SHOWN = 8  # numbers of an embedding


def tabulate_predictions(predictions: Sequence[Prediction]) -> Table:
    """One line an image and class, the most probable first; or one an image with its numbers, or why there are none."""
    if any(item.values for item in predictions):
        return Table("", ("image", "numbers"), tuple((item.image, _describe_numbers(item)) for item in predictions))
    rows = [row for item in predictions for row in _list_classes(item)]
    return Table("", ("image", "class", "probability"), tuple(rows))


def tabulate_summary(summary: Summary) -> Table:
    """How many predictions a file holds."""
    return tabulate_pairs("", {"images": f"{summary.images:,}", "not readable": f"{summary.bad:,}"})


def _list_classes(item: Prediction) -> Iterator[tuple[str, str, str]]:
    if item.error:
        yield item.image, f"not readable: {item.error}", ""
    for place, score in enumerate(item.classes):
        yield "" if place else item.image, score.label, f"{score.probability * 100:.1f} %"


def _describe_numbers(item: Prediction) -> str:
    """The first numbers, each with its name where there are names; or why there are none."""
    if item.error:
        return f"not readable: {item.error}"
    shown = [f"{value:.4g}" for value in item.values[:_SHOWN]]
    shown = [f"{name} {value}" for name, value in zip(item.names, shown, strict=False)] or shown
    more = len(item.values) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
