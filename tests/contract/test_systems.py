"""Networks of one's own making go through the whole line, as the table says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models import systems, table


def test_the_page_is_what_was_stored() -> None:
    rows = table.read()
    assert [(row.name, row.about) for row in rows] == [(name, about) for name, (about, _) in systems.SYSTEMS.items()]
    assert all(set(row.cells) <= set(table.COLUMNS) for row in rows)
    assert table.PAGE.read_text() == table.write(rows), "run: python -m tests.models.table"


@pytest.mark.parametrize("name", systems.SYSTEMS)
def test_every_part_of_a_system_counts(name: str) -> None:
    """A part without effect would prove nothing: changing any parameter changes the logits."""
    side, channels = systems.size_images(name)
    system = systems.build(name)
    with torch.inference_mode():
        images = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))

        def run() -> torch.Tensor:
            given = system(images)
            return given[0] if isinstance(given, tuple) else given

        before = run()
        assert torch.equal(before, run())
        assert before.std() > 0.05 and (before[0] - before[1]).abs().max() > 1e-3
        silent = [part for part, parameter in system.named_parameters() if not _changes(parameter, run, before)]
    unused = {"conditional": ["token", "places"], "sinusoidal": ["token", "places"]}
    unused["own_channels"] = [f"blocks.{number}.attention.k.bias" for number in range(2)]  # moves all scores of a token alike
    assert silent == unused.get(name, [])


def _changes(parameter: torch.Tensor, run, before: torch.Tensor) -> bool:
    kept = parameter.clone()
    parameter += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    moved = (run() - before).abs().max()
    parameter.copy_(kept)
    return bool(moved > 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", systems.SYSTEMS)
def test_a_system_goes_through_as_the_table_says(name: str, tmp_path: Path) -> None:
    stored = next(row for row in table.read() if row.name == name)
    made = table.run(name, tmp_path)
    for column in table.COLUMNS:
        now, then = made.cells.get(column, ""), stored.cells.get(column, "")
        assert now == then or abs(float(now) - float(then)) <= 3, (column, now, then)  # dB; words must be the same
