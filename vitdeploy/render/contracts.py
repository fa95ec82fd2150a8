"""How images become a model's input, in a line: the contract, what of it was assumed, and what labelled images say of it."""

from __future__ import annotations

from vitdeploy.record import ExportProof, Origin
from vitdeploy.spec import InputContract


def describe_contract(contract: InputContract) -> str:
    """All of a contract, but for where the crop begins when the margin is odd."""
    size = f"{contract.channels} x {contract.height} x {contract.width}"
    to = f" to {contract.shorter}" if contract.resize == "shortest" else ""
    how = "no resize" if contract.resize == "none" else f"{contract.resize}{to}, {contract.interpolation}"
    scale = f"mean {_format(contract.mean)}; std {_format(contract.std)}"
    return f"{contract.tensor}, {size}; {how}; {scale}; EXIF {contract.exif}, alpha {contract.alpha}"


def describe_assumption(origin: Origin) -> str:
    """What was not read from the checkpoint, and how to say otherwise; "" for nothing."""
    ways = "--mean, --std, --resize, --crop, --interpolation"
    return f"{origin.assumption}; say otherwise with {ways}" if origin.assumed else ""


def describe_trial(proof: object) -> str:
    """The contract beside other usual ones; "" where nothing was tried."""
    trial = proof.contract if isinstance(proof, ExportProof) else None
    if trial is None:
        return ""
    if trial.warning:
        return f"WARNING: {trial.warning}"
    seen = f"{100 * trial.top1:.1f} % top-1 on {trial.images:,} images of {trial.data}"
    return f"{seen}; none of {len(trial.others)} other usual ones is better"


def _format(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
