"""What the pages name exists: files, links, options, extras, targets, functions; their tables are made of what is stored."""

import ast
import json
import re
import subprocess
import sys

import pytest

from tests.benchmarks import tables
from tests.contract.pages import BLOCKS, COMMANDS, FOLDERS, LINES, PAGES, ROOT, TOP

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert {language for _, language, _ in BLOCKS} <= {"bash", "python", "toml", "text"}
    others = [(page, line) for page, line in LINES if line not in COMMANDS[page] and not line.startswith("pip install ")]
    assert [line for page, line in others if page == "README.md"] == ["make demo", "make test"]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page, line in others:  # of developers: what they name exists
        program, subject, *_ = line.split()
        assert (program == "make" and subject in targets) or (program == "python" and (ROOT / subject).is_file()), page


def test_the_top_page_is_one_page() -> None:
    assert len(TOP.splitlines()) <= 250
    assert len(COMMANDS["README.md"]) == 4  # and the line that installs: five


def test_extras_that_are_installed_exist() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    named = re.findall(r"(?:'\.|vitdeploy)\[([\w,-]+)\]", "".join(PAGES.values()))
    assert named
    assert {extra for names in named for extra in names.split(",")} <= extras


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {name for text in PAGES.values() for name in re.findall(r"`make ([\w-]+)`|^make ([\w-]+)$", text, re.M)}
    assert {first or second for first, second in named} <= targets


def test_options_that_are_named_exist() -> None:
    helps = "".join(path.read_text() for path in (ROOT / "tests" / "contract" / "help").glob("*.txt"))
    options = set(re.findall(r"--[a-z][\w-]+", helps)) | {"--no-verify", "--system-site-packages"}
    for page in (page for page in PAGES if page == "README.md" or page.startswith("vitdeploy/")):
        quoted = " ".join(re.findall(r"`([^`\n]+)`", PAGES[page]))
        assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", quoted)) <= options, page


def test_the_accuracy_is_that_of_the_shipped_weights() -> None:
    record = json.loads((ROOT / "recipes" / "fashion_mnist_vit.json").read_text())
    assert f"{100 * record['test_top1']:.2f} % top-1" in PAGES["recipes/README.md"]
    assert f"{record['parameters'] / 1e6:.3g}" in ("0.455", "0.45")


def test_the_table_of_sources_is_the_tests_own() -> None:
    command = [sys.executable, str(ROOT / "tests" / "checkpoints" / "what_loads.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout in PAGES["vitdeploy/checkpoints/README.md"]


def test_tables_of_benchmarks_are_made_of_what_is_stored() -> None:
    assert tables.page() == PAGES["tests/benchmarks/README.md"], "run: python -m tests.benchmarks.tables"
    assert tables.insert_why(TOP, tables.why()) == TOP, "run: python -m tests.benchmarks.tables"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page) -> None:
    """In backticks: whole paths, paths from the page's own folder, and rooms."""
    here = (ROOT / page).parent
    for name in re.findall(r"`([\w./-]+)`", re.sub(r"^```.*?^```", "", PAGES[page], flags=re.M | re.S)):
        if name.startswith(tuple(f"{folder}/" for folder in FOLDERS)):
            assert (ROOT / name).exists(), name
        elif name.endswith((".py", "/")) and not name.startswith(("photos", "my-vit")):
            assert (here / name).exists() or (ROOT / name).exists(), name


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", PAGES[page], flags=re.M | re.S)):
        if target.startswith("https://"):
            continue
        name, _, part = target.partition("#")
        path = ((ROOT / page).parent / name).resolve()
        assert path.is_file(), target
        if part:
            assert part in [anchor(heading) for heading in re.findall(r"^#+ (.+)$", path.read_text(), re.M)], target


def test_every_page_can_be_reached_from_the_top() -> None:
    reached, waiting = set(), ["README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        links = re.findall(r"\]\(([\w./-]+README\.md)", PAGES[page])
        paths = [((ROOT / page).parent / link).resolve().relative_to(ROOT).as_posix() for link in links]
        waiting += [path for path in paths if path not in reached]
    assert reached == set(PAGES)


def test_the_map_has_every_room() -> None:
    package, page = ROOT / "vitdeploy", PAGES["vitdeploy/README.md"]
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert set(re.findall(r"^\| `([\w/]+)` \|", page, re.M)) == rooms
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert set(re.findall(r"`(\w+\.py)`", page.split("At the root")[1].split("## A walk")[0])) == modules


def test_the_walk_leads_where_it_says() -> None:
    """Each function is in its file, and calls the next; the last has the line that is quoted."""
    walk = PAGES["vitdeploy/README.md"].split("## A walk")[1]
    stops = re.findall(r"^\d\. `(vitdeploy/[\w/]+\.py)`: `(\w+)`", walk, re.M)
    bodies = []
    for file, name in stops:
        source = (ROOT / file).read_text()
        functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef) and node.name == name)
        bodies.append(ast.get_source_segment(source, next(functions)) or "")
    assert len(stops) == 3  # and the hop to the map: four
    for body, (_, following) in zip(bodies, stops[1:], strict=False):
        assert f"{following}(" in body
    (line,) = re.findall(r"`(scale = .+?)`", walk)
    assert line in bodies[-1]
