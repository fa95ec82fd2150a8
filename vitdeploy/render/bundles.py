"""Bundles, what was found of them, and keys, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.render.tables import Table, format_metric, tabulate_pairs

if TYPE_CHECKING:
    from vitdeploy.verbs.packer import Packed
    from vitdeploy.verbs.signer import Keys
    from vitdeploy.verbs.verifier import Verification

_SHORT = 12


def tabulate_packed(packed: Packed) -> list[Table]:
    """What a bundle holds, and each form of the model in it."""
    facts = packed.manifest
    pairs = {
        "bundle": f"{facts.name}, release {facts.release}" + (f" ({facts.version})" if facts.version else ""),
        "id": packed.id[:_SHORT],
        "size": f"{packed.size / 2**20:,.1f} MiB in {len(facts.files) + 1} files",
        "signed by": packed.key[:_SHORT] or "nobody",
        "samples": str(len(facts.samples)),
    }
    if facts.gates:
        pairs["gates"] = f"{len(facts.gates)} passed"
    rows = tuple(
        (
            model.folder,
            model.engine or "any",
            ", ".join(f"{engine} {each.distance:.2g}" for engine, each in model.tried.items()),
            f"{model.limit:.2g}",
            "" if model.original is None else f"{model.original:.2g}",
        )
        for model in facts.models
    )
    columns = ("model", "engine", "ran here, distance", "limit on a box", "from the original")
    notes = [tabulate_pairs("", {"note": note}) for note in packed.notes]
    return [tabulate_pairs("", pairs), Table("", columns, rows), *notes]


def tabulate_verification(verification: Verification) -> list[Table]:
    """What holds of a bundle."""
    pairs = {
        "bundle": f"{verification.name}, release {verification.release}",
        "id": verification.id[:_SHORT],
        "files": "those that were packed",
    }
    if verification.key:
        pairs["signed by"] = verification.key[:_SHORT]
    if verification.engine:
        pairs["ran"] = verification.why
    rows = tuple(
        (check.name, check.limit, "" if check.metric is None else format_metric(check.metric), check.outcome, check.why)
        for check in verification.checks
    )
    checks = [Table("", ("check", "limit", "here", "outcome", "what"), rows)] if rows else []
    notes = [tabulate_pairs("", {"note": note}) for note in verification.notes]
    return [tabulate_pairs("", pairs), *checks, *notes]


def tabulate_keys(keys: Keys) -> Table:
    """Where the halves of a key lie."""
    return tabulate_pairs("", {"private": keys.private, "public": keys.public, "key": keys.key[:_SHORT]})
