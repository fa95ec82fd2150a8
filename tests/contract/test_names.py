"""Names that can be guessed, and files small enough to be read: rules that a script can see."""

import ast
from collections import Counter
from functools import lru_cache
from pathlib import Path

import vitdeploy

ROOT = Path(vitdeploy.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION, MOST_ROOT_MODULES, MOST_OPEN_TABLES = 400, 60, 17, 40
SAME_NAME = {
    "settings": "each engine's own, in its folder",
    "kernels": "what each engine executes, in its folder",
    "backend": "each engine's own, in its folder",
    "clip": "OpenAI's own format and Hugging Face's, in their folders",
    "attention": "in foreign graphs, and as TensorRT's rules see it",
    "vit": "the network, and Hugging Face's plain ViTs",
    "progress": "what tells it, and how it is drawn",
    "builder": "TensorRT's own, in its folder, and what the verb build calls",
    "rules": "what is refused: of every ONNX file, and of those that TensorRT is given",
    "shapes": "of a checkpoint's tensors, and of a graph's values",
    "source": "a library of checkpoints, and the artifact that is quantized",
}
"""Names that several modules have, and why their folders make the difference plain."""


PARTICIPLES = frozenset(
    ("told", "made", "built", "found", "taken", "given", "kept", "written", "shown", "sent", "left", "lost", "known", "seen")
)
NOT_PARTICIPLES = frozenset(("need", "seed", "feed", "embed", "speed", "listing", "embedding", "timing", "paired", "string"))
"""Imperatives and nouns that only look like participles."""


@lru_cache
def parse_package() -> list[tuple[Path, ast.Module]]:
    return [(path.relative_to(ROOT), ast.parse(path.read_text())) for path in MODULES]


def list_stored_names(tree: ast.AST) -> list[tuple[str, int]]:
    """Names that are assigned, looped over, or parameters, with their lines."""
    names = [(node.id, node.lineno) for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return names + [(node.arg, node.lineno) for node in ast.walk(tree) if isinstance(node, ast.arg)]


def test_a_variable_says_what_it_holds():
    vague = {"found", "result_", "tmp", "temp", "stuff", "thing", "things", "obj"}
    assert [
        f"{path}:{line} {name}" for path, tree in parse_package() for name, line in list_stored_names(tree) if name in vague
    ] == []


def test_functions_are_imperatives():
    participles = []
    for path, tree in parse_package():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and not node.decorator_list:
                first = node.name.strip("_").split("_")[0]
                if first not in NOT_PARTICIPLES and (first in PARTICIPLES or first.endswith(("ed", "ing"))):
                    participles.append(f"{path}:{node.lineno} {node.name}")
    assert participles == []


def test_no_module_has_the_name_of_a_public_function():
    functions = {name for name in vitdeploy.__all__ if callable(getattr(vitdeploy, name)) and name.islower()}
    assert functions >= set(vitdeploy.VERBS)
    assert [str(path) for path, _ in parse_package() if path.stem in functions] == []


def test_two_modules_share_a_name_only_where_their_folders_tell_them_apart():
    counts = Counter(path.stem for path, _ in parse_package() if path.stem != "__init__")
    assert {name for name, count in counts.items() if count > 1} <= set(SAME_NAME)


def test_files_and_functions_are_short():
    too_long = [
        f"{path}: {len(path_text)} lines" for path in MODULES if len(path_text := path.read_text().splitlines()) > LONGEST_FILE
    ]
    for path, tree in parse_package():
        if path.parts[0] == "cli" and path.stem.endswith("_group"):
            continue  # a command has as many lines as it has options
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= LONGEST_FUNCTION:
                too_long.append(f"{path}:{node.lineno} {node.name}")
    assert too_long == []


def test_tables_of_anything_are_few():
    """What is known of a table is a type: these are what users may write anything into, and files of other people."""
    assert sum(path.read_text().count("dict[str, Any]") for path in MODULES) <= MOST_OPEN_TABLES


def test_the_root_of_the_package_is_small():
    assert len(list(ROOT.glob("*.py"))) <= MOST_ROOT_MODULES
