"""A stamp: the first thing that differs is told, and what can't be read fits nothing."""

from __future__ import annotations

import msgspec
import pytest

from vitdeploy.backends import cache
from vitdeploy.backends.onnxruntime import backend as onnxruntime

STAMP = {"made by": "engine 1", "made for": "avx2", "made with": "batch 4", "made of": "ab cd"}


def test_the_same_stamp_fits(tmp_path):
    cache.write(tmp_path, STAMP)
    assert cache.explain_misfit(tmp_path, STAMP) == ""
    assert msgspec.json.decode((tmp_path / "cache.json").read_bytes()) == STAMP


@pytest.mark.parametrize("words", STAMP)
def test_every_word_of_it_counts(words, tmp_path):
    cache.write(tmp_path, STAMP | {words: "another"})
    assert cache.explain_misfit(tmp_path, STAMP) == f"{words} another"
    cache.write(tmp_path, {kept: value for kept, value in STAMP.items() if kept != words})
    assert cache.explain_misfit(tmp_path, STAMP) == f"{words} something unknown"


def test_the_first_difference_is_told_and_cut_to_a_line(tmp_path):
    cache.write(tmp_path, STAMP | {"made for": "x" * 200, "made of": "y"})
    assert cache.explain_misfit(tmp_path, STAMP) == "made for " + "x" * 91


@pytest.mark.parametrize("raw", [b"{", b"\xff", b"[]", b'{"made by": 1}', b'"' + b" " * 65_536])
def test_a_damaged_stamp_fits_nothing(raw, tmp_path):
    (tmp_path / "cache.json").write_bytes(raw)
    assert cache.explain_misfit(tmp_path, {}) == "its stamp is damaged"


def test_a_stamp_may_be_64_kib_long(tmp_path):
    (tmp_path / "cache.json").write_bytes(b"{}".ljust(65_536))
    assert cache.explain_misfit(tmp_path, {}) == ""
    (tmp_path / "cache.json").write_bytes(b"{}".ljust(65_537))
    assert cache.explain_misfit(tmp_path, {}) == "its stamp is damaged"


def test_without_a_stamp_nothing_fits(tmp_path):
    assert cache.explain_misfit(tmp_path, {}) == "it has no stamp"


def test_what_an_optimised_graph_depends_on(monkeypatch):
    monkeypatch.setattr(onnxruntime.onnxruntime, "__version__", "1.2")
    monkeypatch.setattr(onnxruntime.machine, "instruction_sets", lambda: "avx2")
    assert onnxruntime._stamp(7) == {
        "made by": "onnxruntime 1.2",
        "made for": "avx2",
        "made with": "all optimisations, CPUExecutionProvider, batch 7",
    }
    assert onnxruntime._stamp(None)["made with"].endswith("batch as in the file")
