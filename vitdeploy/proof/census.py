"""What was asked is what runs: the kernels that an engine really executes, counted against the plan of a quantized model.

Engines rewrite a graph before they run it, and fall back to float in silence when a pattern is not quite theirs. A model
can then be slower than it was and lose accuracy all the same. The census names every such node.

A kernel belongs to the planned node whose name it carries; engines keep the name of a product through all their fusions.
Kernels whose engine lost the name are counted by role instead: each of them that runs in 8 bits answers for one planned
node of its role that no named kernel answers for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from vitdeploy.backends.base import Kernel, Role
from vitdeploy.backends.table import find_engine
from vitdeploy.errors import MachineError
from vitdeploy.record import Census

_QUANTIZED = ("int8", "fp8", "int8-dynamic")
_SHOWN = 3


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a quantized model is meant to run, by the names of its products (MatMul, Gemm) in its own graph.

    Attributes:
        gemms: Products with weights whose inputs are quantized beforehand.
        dynamic: Products with int8 weights whose input is quantized at run time (weight-only, the lane for outliers).
        attention: Products of two activations: queries with keys, probabilities with values.
        ours: Whether it was made here, for an engine, so that what does not run as planned is a fault and not a remark.
    """

    gemms: tuple[str, ...] = ()
    dynamic: tuple[str, ...] = ()
    attention: tuple[str, ...] = ()
    ours: bool = True


def census(plan: Plan, kernels: Iterable[Kernel], engine: str, *, tells: bool = True) -> Census:
    """Compare a plan with the kernels of an engine.

    Args:
        plan: Names of the products of the graph that the engine opened.
        kernels: `Runner.kernels` of that engine.
        engine: Its name.
        tells: Whether the engine tells of every product; else one that it does not name, or whose precision it does not tell,
            is not missing.
    """
    products = [kernel for kernel in kernels if kernel.role != "other"]
    named: dict[str, list[Kernel]] = {}
    for kernel in products:
        named.setdefault(kernel.name, []).append(kernel)
    nameless = Counter(kernel.role for kernel in named.pop("", []) if kernel.precision in _QUANTIZED)
    parts = {"gemms": plan.gemms, "dynamic": plan.dynamic, "attention": plan.attention}
    missing, executed = [], {}
    for part, names in parts.items():
        lost = [name for name in names if not _runs_in_8_bits(named.get(name, []))]
        role: Role = "attention" if part == "attention" else "gemm"
        unknown = [name for name in lost if name not in named][: nameless[role]]
        nameless[role] -= len(unknown)
        lost = [name for name in lost if name not in unknown]
        missing += lost
        executed[part] = len(names) - len(lost)
    untold = [] if tells else [name for name in missing if all(kernel.precision == "other" for kernel in named.get(name, []))]
    missing = [name for name in missing if name not in untold]
    counts = Counter(f"{kernel.role}/{kernel.precision}" for kernel in products)
    return Census(
        engine=engine,
        counts=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        planned={part: len(names) for part, names in parts.items()},
        executed=executed,
        missing=tuple(missing),
        untold=tuple(untold),
        fallbacks=tuple(kernel.name or kernel.kind for kernel in products if kernel.fallback),
        reasons=tuple(dict.fromkeys(_guess_reason(named.get(name, [])) for name in missing)),
    )


def require(census: Census, target: str = "") -> None:
    """Refuse a model that does not run as planned.

    Args:
        census: What `census` returned.
        target: What the model was quantized for, where that is known.

    Raises:
        MachineError: VD4009, planned nodes run in float; names the first ones and the likely cause.
    """
    if not census.missing:
        return
    first = ", ".join(census.missing[:_SHOWN]) + (", ..." if len(census.missing) > _SHOWN else "")
    message = (
        f"{census.engine}: {len(census.missing)} of {sum(census.planned.values())} layers planned for 8 bits do not run in them: "
        f"{first} ({'; '.join(census.reasons)})"
    )
    own = find_engine(census.engine).quantize_target
    fix = "use --precision fp16, or report this with the model" if target == own else f"quantize for this engine: --backend {own}"
    raise MachineError("VD4009", message, fix=fix)


def _runs_in_8_bits(kernels: list[Kernel]) -> bool:
    return bool(kernels) and all(kernel.precision in _QUANTIZED for kernel in kernels)


def _guess_reason(kernels: list[Kernel]) -> str:
    """Why a node is likely to run in float, as far as its kernel tells."""
    floats = [kernel for kernel in kernels if kernel.precision not in _QUANTIZED]
    if not floats:
        return "the engine has no kernel of that name: it was folded into another, or the plan is of another model"
    first = floats[0]
    if not first.fallback:
        return "its inputs are not quantized in the file"
    return first.reason or _UNKNOWN


_UNKNOWN = "the engine does not recognise the pattern of QuantizeLinear and DequantizeLinear around it"
