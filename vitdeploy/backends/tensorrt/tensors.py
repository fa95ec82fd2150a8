"""Shapes, element types and small constants of an ONNX graph, read without onnx: what the engine's rules are about.

Source: onnx.proto3 of ONNX (TensorProto, ValueInfoProto, StringStringEntryProto).
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from vitdeploy import files
from vitdeploy.errors import InputError, TrustError
from vitdeploy.onnxfile.summary import Field, Port, Walk

LARGEST = 1 << 20
"""Bytes of a constant beyond which it is not read: zero points are far smaller."""
_EXTERNAL = ("location", "offset", "length")


class Tensors:
    """What is declared of the main graph's values.

    Args:
        path: The ONNX file; data beside it is read where a zero point lies there.

    Raises:
        InputError: VD3011, the file is not a whole ONNX model.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as stream:
                walk = _TensorWalk(stream, path.parent)
                walk.model(path.stat().st_size)
        except (EOFError, UnicodeDecodeError, ValueError) as exc:
            raise InputError("VD3011", f"is not a whole ONNX file ({exc})", file=path) from exc
        ports = (*walk.ports["values"], *walk.ports["inputs"], *walk.ports["outputs"])
        self.dtypes = {port.name: port.dtype for port in ports if port.dtype}
        """Element types, of all values that the file declares."""
        self._shapes: dict[str, tuple[int | str, ...]] = {port.name: port.shape for port in ports if port.shape is not None}
        self._shapes |= walk.sizes
        self._zero = walk.zero

    def shape(self, value: str) -> tuple[int | str, ...] | None:
        """Sizes of a value, a name or "" for one that may vary; None when the file does not say."""
        return self._shapes.get(value)

    def is_zero(self, value: str) -> bool | None:
        """Whether all elements of a constant are zero; None when it is no constant of the file, or a large one."""
        return self._zero.get(value)


class _TensorWalk(Walk):
    """Keeps shapes and whether small constants are zero, instead of counting."""

    def __init__(self, stream: BinaryIO, folder: Path) -> None:
        super().__init__(stream)
        self.ports["values"] = list[Port]()
        self.sizes: dict[str, tuple[int | str, ...]] = {}
        self.zero: dict[str, bool | None] = {}
        self._folder = folder

    def graph(self, start: int, end: int, kind: str) -> None:
        """GraphProto: the declared shapes of inner values too."""
        super().graph(start, end, kind)
        if kind == "graph":
            for field in self.fields(start, end):
                if field.number == 13:
                    self.port("values", field)

    def node(self, start: int, end: int, _: str) -> None:
        """NodeProto: only a Constant matters."""
        operator, output, attributes = "", "", list[Field]()
        for field in self.fields(start, end):
            if field.number == 4:
                operator = self.text(field)
            elif field.number == 2 and not output:
                output = self.text(field)
            elif field.number == 5 and field.value < 0:
                attributes.append(field)
        for attribute in attributes if operator == "Constant" else ():
            for field in self.fields(*attribute[2:]):
                if field.number == 5 and field.value < 0:  # AttributeProto.t
                    self._constant(field.start, field.end, output)

    def function(self, start: int, end: int, _: str) -> None:
        """FunctionProto: not of the main graph."""

    def tensor(self, start: int, end: int, kind: str) -> None:
        """TensorProto of an initializer."""
        if kind == "initializer":
            self._constant(start, end, "")

    def _constant(self, start: int, end: int, name: str) -> None:
        """TensorProto: its name unless one is given, its sizes, and whether it is zero."""
        sizes: list[int] = []
        zero: bool | None = True  # as long as nothing else is seen: protobuf leaves zeros out
        outside: dict[str, str] = {}
        for field in self.fields(start, end, fixed=True):
            if field.number == 1:
                sizes += [field.value] if field.value >= 0 else self.packed(field)
            elif field.number == 8 and not name:
                name = self.text(field)
            elif field.number in (4, 5, 7, 9, 10, 11):  # float, int32, int64, raw, double and uint64 data
                zero = zero and self._is_zero(field)
            elif field.number == 13:
                self._entry(field, outside)
        if "location" in outside:
            zero = self._outside(outside)
        self.sizes[name], self.zero[name] = tuple(sizes), zero

    def _is_zero(self, field: Field) -> bool | None:
        """Whether data is zero: every number's encoding is of zero bytes exactly then."""
        if field.value >= 0:
            return field.value == 0
        size = field.end - field.start
        if size > LARGEST:
            return None
        self.stream.seek(field.start)
        return not any(self.stream.read(size))

    def _entry(self, entry: Field, found: dict[str, str]) -> None:
        """StringStringEntryProto of external data."""
        pair = ["", ""]
        for field in self.fields(*entry[2:]):
            if field.number in (1, 2):
                pair[field.number - 1] = self.text(field)
        if pair[0] in _EXTERNAL:
            found[pair[0]] = pair[1]

    def _outside(self, entry: dict[str, str]) -> bool | None:
        """Whether data in another file is zero; None when it can't be read."""
        try:
            offset, length = int(entry.get("offset", "0")), int(entry.get("length", "-1"))
            if offset < 0 or length > LARGEST:
                return None
            with files.inside(self._folder, entry["location"]).open("rb") as stream:
                stream.seek(offset)
                raw = stream.read(length if length >= 0 else LARGEST + 1)
        except (OSError, ValueError, TrustError):
            return None
        return None if len(raw) > LARGEST or len(raw) < length else not any(raw)
