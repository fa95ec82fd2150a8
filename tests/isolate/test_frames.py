"""What goes through the socket arrives as it was sent, in whatever pieces; what is too large is refused before it is read."""

from __future__ import annotations

import json

import pytest

from vitdeploy.isolate import frames


def pour(data: bytes, most: int = 1 << 30) -> frames.Fill:
    """A stream of these bytes, at most so many at a time."""
    rest = memoryview(data)

    def fill(view: memoryview) -> int:
        nonlocal rest
        count = min(len(view), len(rest), most)
        view[:count], rest = rest[:count], rest[count:]
        return count

    return fill


def frame(message: dict[str, object]) -> bytes:
    text = json.dumps(message).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize("most", [1, 3, 1 << 20])
def test_messages_follow_each_other(most: int) -> None:
    first = frames.encode_message({"a": ["ä", None, 0.1]}, [memoryview(b"abc"), memoryview(b"")])
    assert first[8:] == b'{"a": ["\\u00e4", null, 0.1], "sizes": [3, 0]}'
    assert first[:8] == bytes((len(first) - 8, *[0] * 7))
    stream = pour(first + b"abc" + frames.encode_message({}), most)
    assert frames.receive_message(stream) == ({"a": ["ä", None, 0.1]}, [b"abc", b""])
    assert frames.receive_message(stream) == ({}, [])
    with pytest.raises(EOFError):
        frames.receive_message(stream)


def test_sizes_are_counted_in_bytes() -> None:
    import array

    message = frames.encode_message({}, [memoryview(array.array("d", [1.0, 2.0]))])
    assert json.loads(message[8:]) == {"sizes": [16]}


@pytest.mark.parametrize("cut", [0, 5, 8, 20, -1])
def test_a_stream_that_ends_early(cut: int) -> None:
    with pytest.raises(EOFError):
        frames.receive_message(pour((frame({"sizes": [4]}) + b"abcd")[:cut]))


@pytest.mark.parametrize("sizes", [[True], [1.0], [-1], ["1"], None, 3, [2, -2]])
def test_sizes_that_are_none(sizes: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        frames.receive_message(pour(frame({"sizes": sizes}) + bytes(9)))


def test_the_largest_that_may_come(monkeypatch: pytest.MonkeyPatch) -> None:
    message = frame({"sizes": [2, 3]})
    monkeypatch.setattr(frames, "LARGEST_ANSWER", len(message) - 8)
    monkeypatch.setattr(frames, "LARGEST_ARRAYS", 5)
    assert frames.receive_message(pour(message + b"abcde")) == ({}, [b"ab", b"cde"])
    monkeypatch.setattr(frames, "LARGEST_ARRAYS", 4)
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        frames.receive_message(pour(message))
    monkeypatch.setattr(frames, "LARGEST_ANSWER", len(message) - 9)
    with pytest.raises(ValueError, match=str(len(message) - 8)):
        frames.receive_message(pour(message))


def test_limits_in_bytes() -> None:
    assert (frames.LARGEST_ANSWER, frames.LARGEST_ARRAYS) == (64 * 2**20, 4 * 2**30)
