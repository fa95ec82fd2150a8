"""The network's own weights out of what trainers wrap around them: first which dictionary counts, then which prefixes go.

Both work on names alone. Nothing is done in silence: each step is a sentence in the notes. What torch's own wrappers put before
names is a table, since it goes from any network; what else stands there is found by `members`, from the parts of the networks
that are known.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from vitdeploy.checkpoints.members import HEADS, SKIPPED, find_roots, is_average, place
from vitdeploy.errors import InputError, UsageError

Name = tuple[str, ...]

PLAIN = ("state_dict", "model_state_dict", "model", "module", "net", "network", "model_state", "weights", "params", "student")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "params_ema", "teacher")
"""Keys of the weights as trained and of their running average, the likeliest first."""


class Prefix(NamedTuple):
    """One line of the table of prefixes.

    Attributes:
        text: The prefix, with its dot.
        wrapper: What puts it there.
        anywhere: It is never a part of a network, so it goes wherever it stands in a name.
    """

    text: str
    wrapper: str
    anywhere: bool = False


PREFIXES = (
    Prefix("_orig_mod.", "torch.compile", anywhere=True),
    Prefix("_fsdp_wrapped_module.", "FullyShardedDataParallel", anywhere=True),
    Prefix("_checkpoint_wrapped_module.", "activation checkpointing", anywhere=True),
    Prefix("module.", "DataParallel or an averaged model"),
)

SAVE = 'torch.save(model.state_dict(), "weights.pth")'
"""How weights are saved alone; under a name that no training checkpoint has."""

DROPPED = {"n_averaged": "the count of an averaged model"}


class Chosen(NamedTuple):
    """The dictionary that counts.

    Attributes:
        prefix: Keys that lead to it.
        notes: Which it is when there were several.
    """

    prefix: Name
    notes: tuple[str, ...]


class Stripped(NamedTuple):
    """Names without prefixes.

    Attributes:
        names: Old name to new name, in the old order, without what was left out.
        notes: What was stripped, and left out.
        doubt: Why the names of a network were left as they are, or nothing.
    """

    names: dict[str, str]
    notes: tuple[str, ...]
    doubt: str = ""


def choose(names: Sequence[Name], prefer: str | None = None) -> Chosen:
    """Find the network's weights in a checkpoint of nested dictionaries.

    Args:
        names: The keys that lead to each tensor.
        prefer: ``ema`` or ``plain`` where there are both; None takes the average when it has the same names (a teacher in
            any case, as DINO's authors do).

    Raises:
        InputError: VD3021, no weights, or several dictionaries of which none is known.
        UsageError: VD2003, ``prefer`` is neither; VD2010, what is preferred is not there.
    """
    if prefer not in (None, "ema", "plain"):
        raise UsageError("VD2003", f"prefer is {prefer!r}", fix="use 'ema' or 'plain'")
    here: Name = ()
    notes: list[str] = []
    seen: set[str] = set()
    while True:
        rest = [name[len(here) :] for name in names if name[: len(here)] == here]
        key, note = _next(rest, prefer)
        if key is None:
            break
        seen |= {
            kind for kind, keys in (("ema", AVERAGED), ("plain", PLAIN)) if key in keys or (kind == "ema" and is_average(key))
        }
        here += (key,)
        notes += [note] if note else []
    twice = place([".".join(name[len(here) :]) for name in names if name[: len(here)] == here]).averaged
    if prefer is not None and not twice and prefer not in seen and (prefer == "ema" or "ema" in seen):
        message = f"holds no {'averaged' if prefer == 'ema' else 'plain'} weights beside the others"
        raise UsageError("VD2010", message, fix="leave the preference out")
    return Chosen(here, tuple(notes))


def _next(rest: Sequence[Name], prefer: str | None) -> tuple[str | None, str]:
    """The key to go down, None to stay, and what to tell about it."""
    below: dict[str, list[Name]] = {}
    for name in rest:
        if len(name) > 1 and name[0] not in SKIPPED:
            below.setdefault(name[0], []).append(name[1:])
    averaged = next((key for key in AVERAGED if key in below), None)
    plain = next((key for key in PLAIN if key in below), None)
    if averaged and plain:
        return _either(averaged, plain, below, prefer)
    if averaged:
        return averaged, f"took the averaged weights {averaged!r}"
    if plain:
        return plain, ""
    if any(len(name) == 1 for name in rest):
        return None, ""
    if len(below) == 1:
        key = next(iter(below))
        return key, f"took the tensors under {key!r}, the only ones"
    if not below:
        raise InputError("VD3021", "holds no weights", fix=f"save them with {SAVE}")
    whole = [key for key, inside in below.items() if find_roots([".".join(name) for name in inside])]
    if len(whole) == 1:
        return whole[0], f"took the tensors under {whole[0]!r}, where the network stands"
    averages = [key for key in whole if is_average(key)]
    if len(whole) == 2 and len(averages) == 1:
        return _either(averages[0], next(key for key in whole if key not in averages), below, prefer)
    keys = sorted(below)
    message = f"holds {len(keys)} dictionaries of tensors ({', '.join(map(repr, keys[:5]))}{', ...' * (len(keys) > 5)})"
    fix = f'save the one that counts: torch.save(checkpoint[{keys[0]!r}], "weights.pth")'
    raise InputError("VD3021", f"{message}, none with a name that is known", fix=fix)


def _either(averaged: str, plain: str, below: dict[str, list[Name]], prefer: str | None) -> tuple[str, str]:
    same = averaged == "teacher" or _bare(below[averaged]) == _bare(below[plain])
    if prefer == "ema" or (prefer is None and same):
        return averaged, f"took the averaged weights {averaged!r}, not {plain!r}; prefer='plain' takes those"
    why = "" if same else f", whose names differ from those of {averaged!r}"
    return plain, f"took {plain!r}{why}; prefer='ema' takes the averaged weights {averaged!r}"


def _bare(names: Sequence[Name]) -> set[str]:
    return set(strip([".".join(name) for name in names]).names.values())


def strip(names: Sequence[str], prefer: str | None = None) -> Stripped:
    """Strip what wrappers put before names.

    Args:
        names: Flat names of all tensors, each once.
        prefer: ``ema`` or ``plain`` where the network is there twice; None takes the average.
    """
    now = {name: name for name in names if name not in DROPPED}
    notes = [f"left out {name!r}, {DROPPED[name]}" for name in names if name in DROPPED]
    changed = True
    while changed:
        changed = False
        for prefix in PREFIXES:
            new = _drop(prefix, now)
            if new is not None:
                gone = sum(new[name] != now[name] for name in now)
                notes.append(f"stripped {prefix.text!r} ({prefix.wrapper}) from {gone} of {len(now)} names")
                now, changed = new, True
    placed = place(list(now.values()), prefer)
    bare = {name: placed.names[text] for name, text in now.items() if text in placed.names}
    return Stripped(bare, (*notes, *placed.notes), placed.doubt)


def _drop(prefix: Prefix, names: dict[str, str]) -> dict[str, str] | None:
    """The names without a prefix, or None when the rule does not allow it."""
    if prefix.anywhere:
        marked = re.compile(rf"(?<![^.]){re.escape(prefix.text)}")  # at the start or after a dot
        new = {name: marked.sub("", text) for name, text in names.items()}
    elif any(not text.startswith(prefix.text) and text.split(".")[0] not in HEADS for text in names.values()):
        return None
    else:
        new = {name: text.removeprefix(prefix.text) for name, text in names.items()}
    if new == names or len(set(new.values())) < len(new) or "" in new.values():
        return None
    return new
