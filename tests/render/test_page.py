"""The page stands alone: nothing is loaded or run, names stay text, and a browser shows it without a complaint."""

import base64
import hashlib
import itertools
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.render.test_sinks import HOSTILE, report
from vitdeploy.data.thumbnails import Thumbnail
from vitdeploy.measure.bitmaps import pack
from vitdeploy.render.charts import Dot, draw_bars, draw_profile, find_front
from vitdeploy.render.glance import choose_worth, list_variants
from vitdeploy.render.markup import make, write
from vitdeploy.render.page import Content, format_page, format_report, format_verdict
from vitdeploy.report import Answer, Gate, Group, Images, Metric, Report, Row, Verdict, WorstImage

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
ALLOWED = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "h1",
        "h2",
        "h3",
        "p",
        "ul",
        "li",
        "div",
        "span",
        "strong",
        "img",
    ),
    *("details", "summary", "table", "thead", "tbody", "tr", "th", "td", "svg", "rect", "line", "text", "circle", "polyline"),
}


class Reader(HTMLParser):
    """What a browser would make of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.style = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attributes
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.style += data
            self._inside = ""
        else:
            self.words += data


def make_validation(subject: str = "engine", classes: int = 3, images: int = 60) -> Report:
    names = tuple(f"class {number:04}" for number in range(classes))
    codes = base64.b64encode((np.arange(images) % classes).astype("<u2").tobytes()).decode()
    right = {name: pack(np.arange(images) % step != 0) for name, step in (("pytorch", 7), (subject, 5))}
    answers = Answer("cat", Metric(0.9, "share")), Answer("dog", Metric(0.5, "share"))
    worst = tuple(WorstImage(f"{number}.png", 1 / (1 + number), "cat", *answers) for number in range(12))
    seen = Images(
        digest="",
        count=images,
        groups={"class": Group(values=names, codes=codes)},
        right=right,
        same={subject: right[subject]},
        worst={subject: worst},
    )
    rows = (
        Row("pytorch", {"top1": Metric(0.9, "share", 0.8, 0.95)}, {"backend": "pytorch"}),
        Row(subject, {"top1": Metric(0.8, "share", 0.7, 0.9)}, {"backend": subject}),
    )
    settings = {"artifact": "vit", "id": "1", "path": "/models/vit-int8"}
    layers = tuple(Row(f"blocks.{number}", {"layer_sqnr": Metric(50.0 - number, "dB")}) for number in range(12))
    inside = Report(title="layers", rows=(*layers, Row("head", {"layer_sqnr": Metric(math.nan, "dB")})), reference="pytorch")
    return Report(title="validate", reference="pytorch", rows=rows, settings=settings, images=seen, parts=(inside,))


def make_timing() -> Report:
    def row(name: str, scale: float, **more: object) -> Row:
        times = {key: Metric(scale * value, "ms") for key, value in (("p50", 1.0), ("p90", 1.5), ("p99", 2.0))}
        told = {"backend": name, "artifact": "vit", "id": "1", "path": "/models/vit-int8", **more}
        return Row(name, {"batch": Metric(1, "count"), **times}, told)

    return Report(title="bench", rows=(row("pytorch", 30.0), row("engine", 1.0)), settings={"rounds": 5})


def make_verdict(name: str = "engine") -> Verdict:
    gates = (
        Gate(about="vit", subject=name, name="max_drop", limit="0.5 pt", metric=Metric(-3.0, "points"), outcome="fail", why=name),
        Gate(about="vit", subject=name, name="min_cosine", limit="0.9", metric=Metric(0.99), outcome="pass", why=name),
    )
    return Verdict(outcome="fail", passed=False, limits={}, gates=gates)


@pytest.mark.parametrize(
    "name", [*HOSTILE, "]]>", "<img src=x onerror=alert(1)>", '" onload="x', "\u202egnp.tac", "</style><script>"]
)
def test_names_stay_text(name) -> None:
    pictures = {name: Thumbnail("png", b"x", 8)}
    page = Reader(format_page(Content([report(name)], [make_verdict(name)], thumbnails=pictures)))
    assert page.tags <= ALLOWED
    assert [key for key, _ in page.attributes if key.startswith("on") or key == "style"] == []
    assert [value for key, value in page.attributes if key in ("src", "href") and not value.startswith("data:image/png;")] == []
    assert [c for c in page.words if c != "\n" and not c.isprintable()] == []
    if name.isprintable() and name not in HOSTILE[:6]:
        assert name in page.words


def test_nothing_is_loaded_and_only_the_own_style_is_allowed() -> None:
    text = format_page(Content([make_validation(), make_timing()], [make_verdict()]))
    page = Reader(text)
    policy = next(value for key, value in page.attributes if key == "content" and value.startswith("default-src"))
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    assert not {"script", "link", "iframe", "object", "a", "form"} & page.tags
    assert not re.search(r"https?:|url\(|@import", text)


def test_the_verdict_is_the_first_word_and_its_reasons_follow() -> None:
    words = Reader(format_page(Content([make_validation()], [make_verdict("the why")]))).words
    assert words.index("Failed") < words.index("1 of 2 limits are kept") < words.index("the why") < words.index("At a glance")
    assert "Not judged" in format_report(make_validation())
    assert "Failed" in format_verdict(make_verdict())


def test_everything_measured_is_there() -> None:
    pictures = {"3.png": Thumbnail("png", b"picture", 28)}
    text = format_page(Content([make_validation(), make_timing()], thumbnails=pictures))
    words = Reader(text).words
    for told in (
        "validate: vit-int8",
        "11.png",
        "dog 50.0 %",
        "class 0002",
        "blocks.11",
        "engine, batch 1",
        "80.0 % [70.0, 90.0]",
    ):
        assert told in words, told
    assert f"data:image/png;base64,{base64.b64encode(b'picture').decode()}" in text
    assert text.count("<circle") == 2 + 13  # two variants, thirteen layers


def test_a_thousand_classes_and_many_pictures_stay_below_3_mb() -> None:
    reports = [make_validation(f"engine {number}", classes=1000, images=5000) for number in range(3)]
    pictures = {f"{number}.png": Thumbnail("jpeg", b"x" * 8000, 160) for number in range(36)}
    assert len(format_page(Content(reports, thumbnails=pictures)).encode()) < 3e6


def test_one_line_a_model_and_engine_whoever_measured_it() -> None:
    first, second = list_variants([make_validation(), make_timing()])
    assert (first.name, list(first.metrics)) == ("pytorch", ["top1", "p50"])
    assert (second.name, second.metrics["p50"].value, second.metrics["top1"].value) == ("engine", 1.0, 0.8)
    assert choose_worth([first, second]) == "top1"
    assert choose_worth([first]) == choose_worth(list_variants([make_timing()])) == ""
    slow = Row("engine", {"batch": Metric(8, "count"), "p50": Metric(9.0, "ms")}, make_timing().rows[1].settings)
    assert list_variants([make_timing(), Report(title="bench", rows=(slow,))])[1].metrics["p50"].value == 1.0


def test_the_front_is_of_those_that_none_beats() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        dots = [Dot(str(number), float(x), float(y)) for number, (x, y) in enumerate(rng.integers(0, 6, (8, 2)))]
        front = find_front(dots)
        beaten = [any((b.x <= a.x and b.y >= a.y) and (b.x, b.y) != (a.x, a.y) for b in dots) for a in dots]  # by brute force
        assert {(dots[place].x, dots[place].y) for place in front} == {
            (d.x, d.y) for d, out in zip(dots, beaten, strict=True) if not out
        }
        assert all(dots[a].x < dots[b].x and dots[a].y < dots[b].y for a, b in itertools.pairwise(front))


def test_numbers_that_are_none_draw_nothing_and_show() -> None:
    drawn = write(make("div", draw_bars([]), draw_profile([("a", math.nan), ("b", math.inf)], "dB")))
    assert "nan" not in re.sub(r"<title>.*?</title>", "", drawn).lower()
    assert drawn.count('class="far"') == 2


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_and_has_nothing_to_say(tmp_path, width) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    page, log, picture = tmp_path / "page.html", tmp_path / "net.json", tmp_path / "page.png"
    page.write_text(format_page(Content([make_validation(), make_timing()], [make_verdict("<script>alert(1)</script>")])))
    command = [
        browser,
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--window-size={width},900",
        f"--screenshot={picture}",
    ]
    command += ["--enable-logging=stderr", f"--log-net-log={log}", "--user-data-dir=" + str(tmp_path / "user"), page.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in ended.stderr.splitlines() if "CONSOLE" in line] == []
    assert not re.search(r'"url":"https?:', log.read_text())
    assert picture.stat().st_size > 10_000
