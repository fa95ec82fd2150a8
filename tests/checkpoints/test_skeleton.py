"""Where tensors stand in a pickle, told without running it."""

from __future__ import annotations

import argparse
import collections
import io
import zipfile
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vitdeploy.checkpoints.skeleton import DEEPEST, list_tensors

STATE = {"a.weight": torch.ones(2), "b.weight": nn.Parameter(torch.ones(3))}
NAMES = [("a.weight",), ("b.weight",)]


def raw(value: object, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    if not zipfile.is_zipfile(stream):
        return stream.getvalue()
    with zipfile.ZipFile(stream) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_keys_of_tensors(kind: type, protocol: int) -> None:
    value = {
        "arch": "state_dict",
        "args": argparse.Namespace(model="vit", model_ema=[1, (2, 3)]),
        "state_dict": kind(STATE),
        "epochs": [1, 2, {"a": 3}],
        "again": {"deeper": kind(STATE)},
        5: STATE,  # no text
    }
    expected = [("state_dict", *name) for name in NAMES] + [("again", "deeper", *name) for name in NAMES]
    assert list_tensors(raw(value, pickle_protocol=protocol)) == expected


def test_files_of_before_torch_1_6() -> None:
    assert list_tensors(raw({"model": STATE}, _use_new_zipfile_serialization=False), 4) == [("model", *name) for name in NAMES]


@pytest.mark.parametrize("content", [b"", b"junk", b"\x80\x02u.", b"\x80\x02}q\x00(X\x01\x00\x00\x00as.", b"\x80\x04h\x05."])
def test_what_is_no_pickle_has_no_tensors(content: bytes) -> None:
    assert list_tensors(content) == []


def test_a_dictionary_that_holds_itself_ends() -> None:
    value: dict[str, Any] = {"a": 1, **STATE}
    value["self"] = value
    names = list_tensors(raw(value))
    assert len(names) == 2 * DEEPEST
    assert max(names, key=len) == ("self",) * (DEEPEST - 1) + ("a.weight",)


@given(st.binary(max_size=60))
def test_any_bytes_end(content: bytes) -> None:
    list_tensors(b"\x80\x02" + content)
