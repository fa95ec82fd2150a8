"""ONNX files as other tools write them, made of one of ours: other names, ends, heads and declared shapes, no metadata."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.artifact import Artifact
from vitdeploy.data import synthetic
from vitdeploy.spec import InputContract

CLASSES = 12


class Elsewhere:
    """A file that is being made.

    Attributes:
        model: What it is by now.
        last: The value that will be its main output.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.model = onnx.load(artifact.model)
        del self.model.metadata_props[:]
        self.last = artifact.spec.output
        self._count = 0

    def add(self, operator: str, *constants: np.ndarray, **attributes) -> Elsewhere:
        """One more node behind the last value."""
        self._count += 1
        names = [self.last]
        for index, array in enumerate(constants):
            names.append(f"more.{self._count}.{index}")
            self.model.graph.initializer.append(numpy_helper.from_array(array, names[-1]))
        made = f"more.{self._count}"
        self.model.graph.node.append(helper.make_node(operator, names, [made], name=f"/more/{made}", **attributes))
        self.last = made
        return self

    def layer(self, outputs: int, *, seed: int = 0) -> Elsewhere:
        """A Linear layer behind vectors of 12."""
        random = np.random.default_rng(seed)
        weight = random.normal(size=(CLASSES, outputs)).astype(np.float32)
        return self.add("MatMul", weight).add("Add", random.normal(size=outputs).astype(np.float32))

    def normalise(self) -> Elsewhere:
        """Length 1, as ``functional.normalize`` is exported."""
        vector = self.last
        length = self.add("ReduceL2", np.array([1]), keepdims=1).add("Clip", np.float32(1e-12)).last
        self.model.graph.node.append(helper.make_node("Div", [vector, length], ["unit"], name="/unit"))
        self.last = "unit"
        return self

    def write(
        self, path: Path, name: str, *sizes: int, extra: tuple = (), image: str = "image", undeclared: bool = False
    ) -> Path:
        """Name the main output, declare its sizes behind the batch, put extra outputs before it, rename the input."""
        graph = self.model.graph
        batch = graph.input[0].type.tensor_type.shape.dim[0]
        for node in graph.node:
            node.input[:] = [{self.last: name, "pixels": image}.get(each, each) for each in node.input]
            node.output[:] = [name if each == self.last else each for each in node.output]
        graph.input[0].name = image
        first = batch.dim_value or batch.dim_param
        main = helper.make_tensor_value_info(name, TensorProto.FLOAT, [first, *sizes])
        del graph.output[:]
        graph.output.extend([*extra, main])
        if undeclared:
            for output in graph.output:
                output.type.tensor_type.ClearField("shape")
            del graph.value_info[:]
        onnx.save(self.model, path)
        return path


def write_contract(path: Path, contract: InputContract) -> Path:
    """A contract file."""
    path.write_bytes(msgspec.json.encode(contract))
    return path


def write_photos(folder: Path, contract: InputContract, count: int = 40) -> Path:
    """Generated images as files, of the contract's size."""
    from PIL import Image

    folder.mkdir()
    for index, pixels in enumerate(synthetic.pixels(count, contract, seed=5)):
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return folder
