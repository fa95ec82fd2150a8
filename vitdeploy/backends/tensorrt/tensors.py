"""Shapes, element types and small constants of an ONNX graph: what the engine's rules are about."""

from __future__ import annotations

from vitdeploy import files
from vitdeploy.errors import TrustError
from vitdeploy.onnxfile.model import Model, Tensor
from vitdeploy.onnxfile.wire import MOST_AXES

LARGEST = 1 << 20
"""Bytes of a constant beyond which it is not read: zero points are far smaller."""


class Tensors:
    """What is declared of the main graph's values; data, inside the file or beside it, is read where it is asked for."""

    def __init__(self, model: Model) -> None:
        main = model.main
        ports = (*main.values, *main.inputs, *main.outputs)
        self.dtypes = {port.name: port.dtype for port in ports if port.dtype}
        """Element types, of all values that the file declares."""
        self._shapes = {port.name: port.shape for port in ports if port.shape is not None}
        self._shapes |= {name: tuple(tensor.sizes) for name, tensor in main.tensors.items()}
        self._path, self._constants = model.path, main.tensors

    def shape(self, value: str) -> tuple[int | str, ...] | None:
        """Sizes of a value, a name or "" for one that may vary; None when the file does not say."""
        return self._shapes.get(value)

    def is_zero(self, value: str) -> bool | None:
        """Whether all elements of a constant are zero; None when it is no constant of the file, or a large one.

        Every number's encoding is of zero bytes exactly when it is zero, and protobuf leaves zeros out.
        """
        tensor = self._constants.get(value)
        if tensor is None or len(tensor.data) > MOST_AXES:
            return None
        said = {entry.key: entry.value for entry in tensor.external}
        try:
            return self._is_zero_outside(said) if "location" in said else self._is_zero_inside(tensor)
        except (OSError, ValueError, TrustError):
            return None

    def _is_zero_inside(self, tensor: Tensor) -> bool | None:
        if any(part.end - part.start > LARGEST for part in tensor.data):
            return None
        with self._path.open("rb") as stream:
            for part in tensor.data:
                stream.seek(part.start)
                if part.value > 0 or any(stream.read(part.end - part.start)):
                    return False
        return True

    def _is_zero_outside(self, entry: dict[str, str]) -> bool | None:
        offset, length = int(entry.get("offset", "0")), int(entry.get("length", "-1"))
        if offset < 0 or length > LARGEST:
            return None
        with files.inside(self._path.parent, entry["location"]).open("rb") as stream:
            stream.seek(offset)
            raw = stream.read(length if length >= 0 else LARGEST + 1)
        return None if len(raw) > LARGEST or len(raw) < length else not any(raw)
