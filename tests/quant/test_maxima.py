"""The largest magnitudes, and the image on which something is not a number."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from vitdeploy.contract import InputContract
from vitdeploy.errors import InputError
from vitdeploy.quant.maxima import maxima
from vitdeploy.spec import ModelSpec

SPEC = ModelSpec(name="m", network="module", input=InputContract(height=2, width=2), classes=12)
GRAPH = """<ir_version: 8, opset_import: ["": 17]>
agraph (float[BATCH, 3, 2, 2] x) => (float[BATCH, 3, 2, 2] y) {
    mean = ReduceMean<axes = [1, 2, 3]>(x)
    apart = Sub(x, mean)
    y = Div(apart, mean)
}"""


def measure(tmp_path, batches, batch: str = "n") -> dict[str, float]:
    model = ir.from_proto(onnx.parser.parse_model(GRAPH.replace("BATCH", batch)))
    return maxima(model, batches, tmp_path, spec=SPEC, threads=1)


def make_images(*values: float) -> np.ndarray:
    images = np.ones((len(values), 3, 2, 2), np.float32) * np.array(values, np.float32)[:, None, None, None]
    images[:, 0, 0, 0] *= 3
    return images


@pytest.mark.parametrize("batch", ["n", "1", "2"])
def test_the_largest_over_all_batches(tmp_path, batch) -> None:
    batches = [(make_images(1.0, -5.0, 2.0), ("a", "b", "c")), (make_images(4.0), ("d",))]
    largest = measure(tmp_path, batches, batch)
    assert largest["x"] == 15.0
    assert largest["mean"] == pytest.approx(5 * 14 / 12)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch", ["n", "1", "2"])
@pytest.mark.parametrize("place", range(3))
def test_the_image_of_a_nan_is_named(tmp_path, batch, place) -> None:
    """0/0 on an image without any light, wherever it stands in its batch."""
    values = [1.0, 2.0, 3.0]
    values[place] = 0.0
    with pytest.raises(InputError, match=f"the tensor 'y' is NaN on the image 'image {place}'") as raised:
        measure(tmp_path, [(make_images(7.0), ("first",)), (make_images(*values), [f"image {i}" for i in range(3)])], batch)
    assert raised.value.code == "VD3110"
    assert list(tmp_path.iterdir()) == []


def test_images_that_are_fine_alone_are_named_together(tmp_path) -> None:
    model = """<ir_version: 8, opset_import: ["": 17]> agraph (float[n, 3, 2, 2] x) => (float[1, 1, 1, 1] y) {
        mean = ReduceMean(x)  y = Div(mean, mean) }"""
    batches = [(make_images(1.0, -1.0), ("a", "b"))]
    with pytest.raises(InputError, match="a tensor is NaN on the images 'a' to 'b' together, and on none of them alone"):
        maxima(ir.from_proto(onnx.parser.parse_model(model)), batches, tmp_path, spec=SPEC, threads=1)


def test_an_infinity_is_a_magnitude(tmp_path) -> None:
    images = make_images(1.0)
    images[0, 0] = np.inf
    model = ir.from_proto(onnx.parser.parse_model(GRAPH.replace("BATCH", "n").replace("Div(apart, mean)", "Relu(x)")))
    assert maxima(model, [(images, ("a",))], tmp_path, spec=SPEC, threads=1)["y"] == np.inf
