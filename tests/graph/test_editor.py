"""The editor: free names at a constant cost, outputs that keep theirs, and rewrites that are caught renaming them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph import foreign, vits
from tests.graph.foreign import Sketch
from vitdeploy.graph.canonical import rewrites
from vitdeploy.graph.editor import Editor, free_name
from vitdeploy.graph.exact import fold
from vitdeploy.quant.preparation import Layout, prepare


@pytest.fixture
def scans(monkeypatch) -> list[ir.Graph]:
    """Every time that something goes through all nodes of a graph."""
    seen: list[ir.Graph] = []
    genuine = ir.Graph.__iter__

    def counted(graph):
        seen.append(graph)
        return genuine(graph)

    monkeypatch.setattr(ir.Graph, "__iter__", counted)
    return seen


def relu() -> ir.Model:
    sketch = Sketch()
    return vits.canonical(sketch.model(sketch.add("Relu", "x")))


@pytest.mark.parametrize("count", [10, 100])
def test_names_are_collected_once_however_much_is_inserted(count, scans) -> None:
    model = relu()
    place = model.graph.node(0)
    scans.clear()
    editor = Editor(model)
    collected = len(scans)
    assert collected > 0
    value = place.inputs[0]
    for _ in range(count):
        value = editor.add(place, "Add", [value, editor.constant("c", np.ones(16, np.float32))])
        editor.insert([ir.node("Neg", [value], name="negated")], place)
        editor.own(value.producer(), 1, np.zeros(16, np.float32))
    editor.rewire(place, 0, value)
    assert len(scans) == collected
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names) == 2 * count + 1
    assert set(model.graph.initializers) == {"c", *(f"c_{number}" for number in range(1, count))}


def test_all_exact_rewrites_collect_names_twice(monkeypatch) -> None:
    refreshed = []
    genuine = Editor.refresh
    monkeypatch.setattr(Editor, "refresh", lambda editor: (refreshed.append(editor), genuine(editor)))
    prepared = prepare(ir.from_proto(vits.quick("like-dinov2")), Layout(attention=True))
    assert len(prepared.rewrites) > 5
    assert len(refreshed) == 2  # of the canonical form, and of what follows it


def test_names_of_what_is_gone_are_free_again() -> None:
    model = relu()
    editor, place = Editor(model), model.graph.node(0)
    for _ in range(2):
        value = editor.add(place, "Neg", [editor.constant("c", np.ones(16, np.float32))])
        assert (value.name, list(model.graph.initializers)) == ("Relu_0/Neg_out", ["c"])
        node = value.producer()
        assert node is not None and node.name == "Relu_0/Neg" and editor.sweep(node)


def test_a_name_that_is_taken_gets_the_first_number_that_is_free() -> None:
    taken = {"a", "a_1", "b_0"}
    assert [free_name(name, taken) for name in ("a", "a", "b_0", "b_0", "c")] == ["a_2", "a_3", "b_1", "b_2", "c"]


def test_an_output_keeps_its_name_when_another_value_takes_its_place() -> None:
    model = relu()
    editor, old = Editor(model), model.graph.outputs[0]
    name = old.name
    new = editor.add(old.producer(), "Abs", [model.graph.inputs[0]])
    assert editor.replace(old, new)
    assert [value.name for value in model.graph.outputs] == [name] and vits.operators(model) == {"Abs": 1}
    behind = ir.node("Neg", [new], name="behind")
    editor.insert([behind], new.producer(), behind=True)
    behind.outputs[0].type, behind.outputs[0].shape = new.type, new.shape
    assert editor.replace(new, behind.outputs[0])  # all but the node that makes the one of the other
    assert [value.name for value in model.graph.outputs] == [name] and behind.inputs[0] is new
    assert not editor.replace(behind.outputs[0], model.graph.inputs[0])  # an output must not be an input
    assert not editor.replace(behind.outputs[0], editor.constant("c", np.ones(16, np.float32)))
    editor.check_interface("none")


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_inputs_and_outputs_are_checked_by_name(side) -> None:
    model = relu()
    editor = Editor(model)
    editor.check_interface("none")
    getattr(model.graph, side)[0].name = "renamed"
    with pytest.raises(AssertionError, match=r"'wrong'.*renamed"):
        editor.check_interface("wrong")


def test_an_output_is_not_frozen() -> None:
    model = relu()
    editor, output = Editor(model), model.graph.outputs[0]
    name = output.name
    assert not editor.freeze(output, np.zeros((1, 6, 16), np.float32))
    assert model.graph.outputs[0] is output and output.name == name and not model.graph.initializers


def rename_output(editor: Editor):
    editor.graph.outputs[0].name = "renamed"
    yield ("renamed",)


def rename_input(editor: Editor):
    editor.graph.inputs[0].name = "renamed"
    yield ("renamed",)


@pytest.mark.parametrize("wrong", [rename_output, rename_input])
@pytest.mark.parametrize("steps", ["_SETTLE", "_SPLIT", "_LOWER", "_FUSE"])
def test_a_canonical_rewrite_that_renames_an_output_or_input_is_named(steps, wrong, monkeypatch) -> None:
    name = getattr(rewrites, steps)[-1][0]
    monkeypatch.setattr(rewrites, steps, (*getattr(rewrites, steps)[:-1], (name, wrong)))
    with pytest.raises(AssertionError, match=rf"rewrite '{name}'.*renamed"):
        vits.canonical(foreign.script("timm", 14))


def test_an_exact_rewrite_that_renames_an_output_is_named(monkeypatch) -> None:
    monkeypatch.setattr(fold, "pack_qkv", lambda editor, _: list(rename_output(editor)))
    with pytest.raises(AssertionError, match=r"rewrite 'pack'.*renamed"):
        prepare(ir.from_proto(vits.quick("plain")), Layout())
