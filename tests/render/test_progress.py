"""Progress: whole lines in a log, a bar on a terminal, nothing when quiet."""

import io

import pytest

from vitdeploy.progress import silent
from vitdeploy.render.progress import Lines, open_listener


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_at_the_start_each_tenth_and_the_end():
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, clock)
    for done in range(1001):
        clock.now = done / 100
        lines("validate", done, 1000)
    said = stream.getvalue().splitlines()
    assert said[0] == "validate: 0 of 1,000 (0 %)"
    assert said[1] == "validate: 100 of 1,000 (10 %)"
    assert said[-1] == "validate: done in 10.0 s"
    assert len(said) == 11
    assert "\r" not in stream.getvalue()


def test_a_line_every_thirty_seconds():
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, clock)
    for done in range(100):
        clock.now = done * 10.0
        lines("slow", done, 10_000)
    assert len(stream.getvalue().splitlines()) == 34


def test_steps_share_their_stage_and_stages_can_come_again():
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, clock)
    for _ in range(2):
        lines("export: load", 0, 2)
        lines("export: prove", 1, 2)
        lines("export", 2, 2)
    once = ["export: load: 0 of 2 (0 %)", "export: prove: 1 of 2 (50 %)", "export: done in 0.0 s"]
    assert stream.getvalue().splitlines() == once * 2


def test_a_stage_of_no_steps_is_one_line():
    stream = io.StringIO()
    Lines(stream)("export: unchanged, skipped", 1, 1)
    Lines(stream)("nothing", 0, 0)
    assert stream.getvalue() == "export: unchanged, skipped\nnothing\n"


def test_hostile_names_are_spelled_out():
    stream = io.StringIO()
    Lines(stream)("a\x1b[2J\rb", 1, 1)
    assert stream.getvalue() == "a\\x1b[2J\\rb\n"


def test_quiet_says_nothing():
    stream = io.StringIO()
    with open_listener(quiet=True, stream=stream) as progress:
        assert progress is silent


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_dumb_terminal_gets_lines(monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    with open_listener(stream=Terminal()) as progress:
        assert isinstance(progress, Lines)


@pytest.mark.parametrize("ends", [True, False])
def test_a_terminal_gets_a_bar_and_its_cursor_back(monkeypatch, ends):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), open_listener(stream=stream) as progress:
        progress("export: unchanged, skipped", 1, 1)
        progress("validate [x]", 0, 10)
        progress("validate [x]", 5, 10)
        if ends:
            progress("validate [x]", 10, 10)
        raise KeyboardInterrupt
    shown = stream.getvalue()
    assert "export: unchanged, skipped" in shown
    assert ("done in" in shown) == ends
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")  # shown again after it was hidden


def test_verbose_is_a_line_for_every_step_that_stays():
    stream, clock = Terminal(), Clock()
    lines = Lines(stream, clock, every=True)
    for done in range(20):
        clock.now = done / 10
        lines("bench: turn", done, 20)
    said = stream.getvalue().splitlines()
    assert len(said) == 20
    assert said[7] == "bench: turn: 7 of 20 (35 %), 0.7 s"
    with open_listener("bench", verbose=True, stream=stream) as progress:
        assert isinstance(progress, Lines)


def test_a_terminal_shows_the_command_until_its_first_stage_begins(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with open_listener("validate", stream=stream) as progress:
        assert "validate" in stream.getvalue()
        progress("data: read", 0, 2)
        place = len(stream.getvalue())
        progress("data: read", 1, 2)
    assert "validate" not in stream.getvalue()[place:]
