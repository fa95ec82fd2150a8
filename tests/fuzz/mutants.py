"""Changed ViTs by number: a pure function, so that a graph that was seen once is seen again."""

from __future__ import annotations

import random

import onnx

from tests.fuzz import mutations, structures
from tests.fuzz.seeds import FORMS, seed

MUTATIONS = tuple(mutations.MUTATIONS.values())
assert structures.nested in MUTATIONS


def mutant(number: int) -> tuple[bytes, str]:
    """Graph and description: a seed with one to three changes, and now and then changed bytes."""
    dice = random.Random(number)
    form = FORMS[number % len(FORMS)]
    model = onnx.ModelProto.FromString(seed(form))
    names = []
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        change = dice.choice(MUTATIONS)
        names.append(change.__name__)
        try:
            change(model, dice)
        except (IndexError, ValueError):  # nothing is left that could be changed so
            names[-1] += " (in vain)"
    raw = bytearray(model.SerializeToString())
    if number % 20 == 0:
        names.append("bytes")
        for _ in range(dice.randrange(1, 4)):
            raw[dice.randrange(len(raw))] = dice.choice((0, 1, 8, 0x7F, 0x80, 0xFF, dice.randrange(256)))
    return bytes(raw), f"{number}: {form}, {' + '.join(names)}"
