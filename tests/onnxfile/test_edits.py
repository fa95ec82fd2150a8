"""Edits change what they name and the lengths around it, whatever the sizes."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import onnx
import pytest

from tests.fuzz.seeds import seed
from vitdeploy.errors import InputError
from vitdeploy.onnxfile import edits
from vitdeploy.onnxfile.reader import read_stream
from vitdeploy.onnxfile.wire import encode_field


@pytest.mark.parametrize("length", [0, 1, 60, 127, 128, 129, 16_000, 16_384])
@pytest.mark.parametrize("every", [1, 5])
def test_what_onnx_makes_of_the_same_edits(length: int, every: int) -> None:
    raw = seed("fp32")
    truth, model, out = onnx.ModelProto.FromString(raw), read_stream(BytesIO(raw), Path("a.onnx")), BytesIO()
    changes = [edits.append(model.main.message, encode_field(10, b"g" * length))]
    truth.graph.doc_string = "g" * length
    for node, true in list(zip(model.main.nodes, truth.graph.node, strict=True))[::every]:
        changes += [*edits.cut(node.message, node.places), edits.append(node.message, encode_field(6, b"n" * length))]
        true.ClearField("input")
        true.doc_string = "n" * length
    edits.write(model, BytesIO(raw), changes, out)
    assert onnx.ModelProto.FromString(out.getvalue()) == truth


def test_a_file_that_became_shorter() -> None:
    raw = seed("fp32")
    model = read_stream(BytesIO(raw), Path("a.onnx"))
    with pytest.raises(InputError, match="changed while it was read"):
        edits.write(model, BytesIO(raw[:-1]), [], BytesIO())
