"""Tables on a terminal and off it, Markdown, JSON: hostile names stay text, NaN stays visible."""

import io
import json
import math
import re

import pytest

from vitdeploy.cli.commands import main
from vitdeploy.errors import printable
from vitdeploy.jsonfile import encode
from vitdeploy.render import console, junit, markdown
from vitdeploy.render.tables import Table
from vitdeploy.report import Answer, Gate, Images, Metric, Report, Row, Verdict, WorstImage

COMMANDS = ["::add-mask::e", "  ::stop-commands::x", "##[error]x", "a ##[group]b", "##vso[task.complete]", "##teamcity[x]"]
HOSTILE = [
    *COMMANDS,
    "\x1b[31mred\x1b[0m",
    "a\rb",
    "x\x9b2J",
    "::error::\nfile",
    "[bold]b[/bold]",
    "|cell|",
    "<script>",
    "`rm`",
    ":smile:",
]


def report(subject: str = "a / b", columns: int = 2) -> Report:
    metrics = {f"metric_{n}": Metric(1.5 + n, "ms", 1.4, 1.6) for n in range(columns)}
    rows = (Row(subject, metrics), Row("other", {"metric_0": Metric(math.nan, "ms")}))
    answer = Answer(subject, Metric(0.5, "share"))
    worst = (WorstImage(subject, math.inf, subject, answer, answer), WorstImage(subject, 1.0))
    images = Images(digest="", count=2, worst={subject: worst})
    part = Report(title="bench", reference=subject, rows=rows, notes=(subject,), settings={"key": subject}, images=images)
    return Report(title="build", parts=(part,), settings={"k": subject})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", HOSTILE)
def test_no_control_character_reaches_a_sink(name, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    console.print_report(report(name), stream)
    console.print_text(name, stream)
    written = stream.getvalue() + markdown.format_report(report(name)) + encode(report(name))
    assert [c for c in written if c != "\n" and not c.isprintable()] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_no_line_of_a_log_is_a_command_to_the_server_that_keeps_it(name, capsys, monkeypatch):
    """Source: actions/runner, ActionCommand.cs: ``::`` at a line's start, blanks aside, ``##[`` anywhere in it."""
    stream = io.StringIO()
    console.print_report(report(name), stream)
    console.print_text(name, stream)
    console.print_tables([Table("", ("", ""), ((name, name),))], stream)
    gate = Gate(name=name, outcome="fail", limit=name, about=name, subject=name, metric=None, why=name)
    verdict = Verdict(outcome="fail", passed=False, limits={name: name}, gates=(gate,))
    console.print_verdict(verdict, stream)
    monkeypatch.setattr("sys.stdout", stream)
    assert main(["inspect", name, "--json"]) == 3
    assert main([name]) == 2
    written = stream.getvalue() + encode(report(name)) + junit.format_verdict(verdict) + capsys.readouterr().err
    lines = [line.strip() for line in written.splitlines()]
    assert [line for line in lines if line.startswith("::") or re.search(r"##\w*\[", line)] == []
    assert json.loads(encode({"name": name}))["name"] == name


def test_only_what_would_be_a_command_is_spelled_out():
    for usual in ("a::b", "## heading", "C#", "torch::nn", "# [x]", "###"):
        assert printable(usual) == usual
    for name in COMMANDS:
        assert printable(printable(name)) == printable(name) != name


@pytest.mark.parametrize("name", HOSTILE)
def test_json_gives_the_name_back(name):
    assert json.loads(encode({"name": name}))["name"] == name
    assert encode({"name": name}).isascii()


def test_markup_is_text_on_the_console():
    stream = io.StringIO()
    console.print_report(report("[bold]b[/bold] :smile:"), stream)
    assert "[bold]b[/bold] :smile:" in stream.getvalue()


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_keeps_its_cells_and_shows_no_html(name):
    lines = markdown.format_report(report(name)).splitlines()
    table = [line for line in lines if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table if "metric" in line or "ms" in line}
    assert widths == {4}
    assert not re.search(r"<[a-z/]", "\n".join(lines))
    assert not re.search(r"(?<!\\)`", "\n".join(lines))


def test_markdown_escapes_links_but_not_intervals():
    assert markdown.escape("[x](http://y)") == "\\[x\\](http://y)"
    assert markdown.escape("93.1 % [92.0, 94.1]") == "93.1 % [92.0, 94.1]"
    assert markdown.escape("a\\|b &lt;") == "a\\\\\\|b &amp;lt;"


def test_off_a_terminal_nothing_is_folded_or_padded():
    stream = io.StringIO()
    console.print_report(report("s" * 300, columns=30), stream)
    lines = stream.getvalue().splitlines()
    assert sum(line.count(" ms") for line in lines) == 31  # 30 and the NaN
    assert any("s" * 300 in line for line in lines)
    assert all(line == line.rstrip() for line in lines)
    assert "\x1b" not in stream.getvalue()
    assert "NaN ms" in stream.getvalue()


def test_a_narrow_terminal_gets_blocks(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    console.print_report(report(columns=12), stream)
    plain = re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue())
    table = plain.split("compared with")[0]
    assert max(map(len, table.splitlines())) <= 60
    assert len(re.findall(r"metric \d+ +\d", plain)) == 12  # all numbers whole, each with its name
    assert not re.search(r"\x1b\[3\dm", stream.getvalue())  # no colour


def test_numbers_are_right_aligned_and_words_left():
    stream = io.StringIO()
    console.print_tables([Table("", ("name", "number", "word"), (("a", "1", "x"), ("b", "100", "yyy")))], stream)
    head, _, first, second = stream.getvalue().splitlines()
    assert first.index("1") == second.index("100") + 2
    assert first.index("x") == second.index("yyy") == head.index("word")


def test_json_keeps_nan_and_infinity_apart():
    assert json.loads(encode([math.nan, math.inf, -math.inf, 1.5, (2,), {"a": math.nan}])) == [
        "NaN",
        "Infinity",
        "-Infinity",
        1.5,
        [2],
        {"a": "NaN"},
    ]


def test_json_takes_strings_of_a_class_of_their_own_but_nothing_strange():
    class Version(str):
        __slots__ = ()

    assert json.loads(encode({"version": Version("2.0")})) == {"version": "2.0"}
    with pytest.raises(TypeError):
        encode({"stream": io.StringIO()})


@pytest.fixture
def narrow(monkeypatch):
    """A terminal of 80 columns, and what was written to it without colours."""
    for name, value in (("COLUMNS", "80"), ("NO_COLOR", "1"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    stream = Terminal()
    return stream, lambda: [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in stream.getvalue().splitlines()]


def test_many_numbers_on_many_subjects_are_several_tables_each_with_all_subjects(narrow):
    stream, read = narrow
    subjects = [f"quantize-engine-{n} / engine" for n in range(12)]
    rows = tuple((name, *(f"{n}.{m:02d} ms [1.0, 2.0]" for m in range(6))) for n, name in enumerate(subjects))
    console.print_tables([Table("", ("subject", *(f"metric {m}" for m in range(6))), rows)], stream)
    lines = read()
    assert max(map(len, lines)) <= 80
    tables = [[line for line in lines if line.strip().startswith(name)] for name in subjects]
    assert len({len(found) for found in tables}) == 1 < len(tables[0])
    for number, found in enumerate(tables):
        assert re.findall(rf"\b{number}\.\d\d ms \[1\.0, 2\.0\]", " ".join(found)) == [
            f"{number}.{m:02d} ms [1.0, 2.0]" for m in range(6)
        ]


def test_words_at_the_end_of_a_row_are_wrapped(narrow):
    stream, read = narrow
    rows = (("tensorrt", "no", "NO", "not installed; on a Jetson use the system's package, " * 3), ("other", "yes", "yes", "1.2"))
    console.print_tables([Table("", ("backend", "installed", "runs", "version or reason"), rows)], stream)
    lines = read()
    assert max(map(len, lines)) <= 80
    assert sum("backend" in line for line in lines) == 1
    assert any(line.split() == ["other", "yes", "yes", "1.2"] for line in lines)


def test_notes_and_text_are_wrapped_at_words_and_commands_are_not(narrow):
    stream, read = narrow
    words = " ".join(f"word{n}" for n in range(40))
    console.print_text(words, stream)
    assert all(re.fullmatch(r"(word\d+ ?)+", line) and len(line) <= 80 for line in read())
    assert len(read()) > 3
    before = stream.getvalue()
    console.print_text(words, stream, whole=True)
    assert words in stream.getvalue()[len(before) :]
