"""What is rewritten before anything is rounded, counted: each rewrite at every place it has, and nothing else."""

from __future__ import annotations

import pytest

from vitdeploy.graph import storage
from vitdeploy.graph.exact import rotate
from vitdeploy.graph.structure import recognise
from vitdeploy.quant import preparation
from vitdeploy.quant.preparation import Layout, prepare

BLOCKS = 2


def rewrites(artifact, layout=None, skip=()):
    counts = prepare(storage.read(artifact.model), layout or Layout(), skip).rewrites
    return {name: counts.get(name, 0) for name in ("class-token", "norm-affine", "rotation", "head-rotation")}


@pytest.mark.parametrize(("attention", "heads"), [(False, BLOCKS), (True, 2 * BLOCKS)])
def test_each_rewrite_is_done_at_every_place(tiny_artifact, attention, heads):
    """Two norms in a block; values of each block, and where attention is in 8 bits keys too."""
    found = rewrites(tiny_artifact, Layout(attention=attention))
    assert found["head-rotation"] == heads
    assert found["rotation"] == found["norm-affine"] == 2 * BLOCKS


@pytest.mark.parametrize("skip", ["rotation", "head-rotation", "class-token", "norm-affine"])
def test_what_is_skipped_is_not_done(tiny_artifact, skip):
    whole, found = rewrites(tiny_artifact), rewrites(tiny_artifact, skip=(skip,))
    assert found[skip] == 0
    assert whole[skip] > 0
    gone = {skip, "rotation"} if skip == "norm-affine" else {skip}
    assert {name for name in whole if not found[name]} == gone


@pytest.mark.parametrize("refused", ["the stream", "a norm"])
def test_a_stream_that_can_not_be_turned_is_not_counted_as_turned(tiny_artifact, monkeypatch, refused):
    """Nor is a model turned in part: where one norm has another reader than linear layers, all stay."""
    if refused == "the stream":
        monkeypatch.setattr(rotate, "rotate_stream", lambda *_: False)
    else:
        monkeypatch.setattr(preparation, "recognise", lambda model: mark_shared(recognise(model)))
    assert rewrites(tiny_artifact)["rotation"] == 0


def mark_shared(structure):
    norm = next(site for site in structure.sites if site.kind == "norm")
    norm.only = False
    return structure
