"""What `doctor` found out, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vitdeploy.render.tables import Table, format_metric, tabulate_machine, tabulate_pairs

if TYPE_CHECKING:
    from vitdeploy.verbs.doctor import Checkup
    from vitdeploy.verbs.fitter import Fit


def tabulate_checkup(checkup: Checkup) -> list[Table]:
    """What `doctor` saw, as three tables: the machine, packages, engines."""
    sets = checkup.instruction_sets
    machine = {key: value for key, value in tabulate_machine(checkup.machine).rows if key != "packages"}
    machine |= {
        "instruction sets": ", ".join(name for name, there in sets.items() if there) or "unknown",
        "missing sets": ", ".join(name for name, there in sets.items() if not there) or "none",
        "CPU quota": "none" if checkup.quota_cores is None else f"{checkup.quota_cores:g} cores",
        "memory limit": "none" if checkup.memory_limit_gib is None else f"{checkup.memory_limit_gib:.1f} GiB",
        "memory free": "unknown" if checkup.memory_free_gib is None else f"{checkup.memory_free_gib:.1f} GiB",
        "threads at a time": str(checkup.threads),
        "frequency governor": checkup.governor or "unknown",
        "disk free here": f"{checkup.disk_free_gib:,.1f} GiB",
    }
    packages = {name: version or "not installed" for name, version in checkup.packages.items()}
    engines = tuple((s.name, "yes" if s.installed else "no", "yes" if s.usable else "NO", s.detail) for s in checkup.backends)
    return [
        tabulate_pairs("machine", machine),
        tabulate_pairs("packages", packages),
        Table("backends", ("backend", "installed", "runs", "version or reason"), engines),
        *_tabulate_fits(checkup.fits),
        *(
            [tabulate_pairs("findings", {str(number): told for number, told in enumerate(checkup.findings, 1)})]
            * any(checkup.findings)
        ),
    ]


def _tabulate_fits(fits: Sequence[Fit]) -> Iterator[Table]:
    """How a model runs here, in each engine."""
    if fits:
        rows = tuple(
            (
                fit.engine,
                ("yes, the fastest" if fit.best else "yes") if fit.runs else "NO",
                *("" if number is None else format_metric(number) for number in (fit.latency, fit.memory, fit.size)),
                fit.detail,
            )
            for fit in fits
        )
        yield Table("the model here", ("engine", "runs", "an image", "memory", "on disk", "note"), rows)
