"""Memory of inputs and outputs on a fake device."""

import numpy as np
import pytest

from tests.backends.tensorrt.fake_device import FakeCuda
from vitdeploy.backends.tensorrt.buffers import Buffers, Port, _to_bfloat16
from vitdeploy.errors import MachineError

A, B = Port("a", "HALF", (-1, 3)), Port("b", "FLOAT", (-1, 2))


def test_bfloat16_rounds_to_nearest_even_and_keeps_nan():
    values = np.array([1.0, 1.0 + 2**-8, 1.0 + 3 * 2**-8, 1.0 + 2**-8 + 2**-20, -0.0, np.inf, -np.inf, 3.4e38], np.float32)
    bits = _to_bfloat16(values)
    back = (bits.astype(np.uint32) << 16).view(np.float32)
    expected = np.array([1.0, 1.0, 1.0 + 2**-6, 1.0 + 2**-7, -0.0, np.inf, -np.inf, np.inf], np.float32)
    np.testing.assert_array_equal(back, expected)
    strange = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan((_to_bfloat16(strange).astype(np.uint32) << 16).view(np.float32)).all()


def test_room_is_counted_in_bytes_of_the_type():
    cuda = FakeCuda()
    buffers = Buffers(cuda)
    assert not buffers.holds({A: (1, 3)})
    buffers.grow({A: (4, 3), B: (4, 2)})
    assert [call for call in cuda.calls if "allocate" in call[0]] == [
        ("allocate", 24), ("allocate_pinned", 24), ("allocate", 32), ("allocate_pinned", 32)
    ]  # fmt: skip
    assert buffers.holds({A: (4, 3), B: (1, 2)})
    assert not buffers.holds({A: (5, 3)})
    buffers.close(), buffers.close()
    assert cuda.live == {}
    assert not buffers.holds({A: (1, 3)})


@pytest.mark.parametrize("step", ["allocate", "allocate_pinned"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_growing_that_fails_leaves_nothing(step, nth):
    cuda = FakeCuda()
    buffers = Buffers(cuda)
    cuda.fail = {step: nth}
    with pytest.raises(MachineError, match="on purpose"):
        for size in (1, 2):
            buffers.grow({A: (size, 3), B: (size, 2)})
    assert cuda.live == {}
    assert not buffers.holds({A: (1, 3)})
    buffers.grow({A: (1, 3)})  # and it can begin anew
    tensor = np.array([[1.0, 2.0, 65504.0]], np.float32)
    stream = cuda.stream()
    buffers.upload(A, tensor, stream), buffers.download(A, (1, 3), stream)
    cuda.wait(stream)
    np.testing.assert_array_equal(buffers.take(A, (1, 3)), tensor)
