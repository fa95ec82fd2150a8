"""Advice works when it is followed word by word: every line that a message tells people to run is run here.

The lines are read from the source. One that no scenario runs fails, and so does a scenario whose line is gone. Words in capitals
stand for what the reader has (`WORDS`), ``{}`` for what the program fills in: a scenario gives those in their order.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import vitdeploy
from tests.fleet.boxes import make_place
from tests.models.test_modules import CODE
from vitdeploy.artifact import Artifact
from vitdeploy.backends.pytorch import require_weights
from vitdeploy.checkpoints.checkpoint import read
from vitdeploy.cli.commands import app, main
from vitdeploy.cli.shell import ALIASES
from vitdeploy.errors import InputError, VitdeployError
from vitdeploy.models.vit import build
from vitdeploy.record import Origin
from vitdeploy.zoo.variants import find

ROOT = Path(vitdeploy.__file__).parent
VERBS = "|".join(str(info.name) for info in app.registered_commands)
_VALUE = r"""(?:\{\}|'[^']*'|[\w./:*-]+)"""
_WORD = rf"(?:--?[a-z][a-z-]*(?: (?!--){_VALUE})?|[A-Z][A-Z0-9]+(?:\.[a-z]+)?(?::[A-Z]+)?|VD\d{{4}}|\{{\}})"
LINES = re.compile(
    rf"vitdeploy (?:{VERBS})\b(?!::)(?: {_WORD})*"
    r"|(?:torch\.(?:save|load)|torch\.nn\.utils\.\w+\.\w+|model\.merge_and_unload\(\)\.\w+)\((?:[^()]|\([^()]*\))*\)"
    r"|python -c (?:'[^']*'|\{\})|python3? -m [\w.]+(?: [\w{}-]+)*"
    r"|pip install (?:'[^']*'|[\w-]+)|git lfs \w+|sha256sum \w+"
)
"""What a message may tell people to run: our commands, Python, and a few programs."""
_NEXT = re.compile(rf"^(?:{VERBS}) \{{\}}(?: {_WORD})*")
"""How `answer_artifact` is told the next command: without the program's name."""


def read_texts(tree: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Texts of a module that are no documentation and no example in a command's help, with ``{}`` for what is filled in."""
    silent: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, (ast.Constant, ast.JoinedStr)):
            silent.add(node.value)
        if isinstance(node, ast.FunctionDef):
            silent |= {part for decorator in node.decorator_list for part in ast.walk(decorator)}
        if isinstance(node, ast.JoinedStr):
            silent |= set(ast.walk(node)) - {node}
    for node in ast.walk(tree):
        if node in silent:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\nExamples:" not in node.value:
            yield node, node.value
        if isinstance(node, ast.JoinedStr):
            yield node, "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)


def collect() -> dict[str, str]:
    """Every advised line of the package to where it stands first. Examples in `codes` repeat messages, so they are lines too."""
    lines: dict[str, str] = {}
    for path in sorted(ROOT.rglob("*.py")):
        for node, text in read_texts(ast.parse(path.read_text())):
            here = [match[0] for match in LINES.finditer(text)]
            if path.parent.name == "cli" and (match := _NEXT.match(text.replace("{{}}", "{}"))):
                here.append(f"vitdeploy {match[0]}")
            for line in here:
                lines.setdefault(line, f"{path.relative_to(ROOT)}:{node.lineno}")
    return lines


class Kit(NamedTuple):
    """What a reader of a message has: a folder to stand in, and what the words in capitals mean there."""

    folder: Path
    words: dict[str, str]

    def run(self, line: str, *values: object, exits: tuple[int, ...] = (0,), **words: object) -> None:
        """Run a command of vitdeploy's as a shell would read it."""
        assert main(self.split(line, *values, **words)[1:]) in exits

    def start(self, line: str, *values: object, **words: object) -> str:
        """Run another program's command; what it printed."""
        program, *arguments = self.split(line, *values, **words)
        program = sys.executable if program.startswith("python") else program
        done = subprocess.run([program, *arguments], cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def split(self, line: str, *values: object, **words: object) -> list[str]:
        """A line with its blanks and words filled in."""
        for value in values:
            line = line.replace("{}", shlex.quote(str(value)), 1)
        known = {**self.words, **{word: shlex.quote(str(value)) for word, value in words.items()}}
        return shlex.split(re.sub(r"\b[A-Z]{2,}(\.[a-z]+(:[A-Z]+)?)?\b", lambda match: known.get(match[0], match[0]), line))


def timm_state() -> dict[str, torch.Tensor]:
    """A vit_tiny_patch16_224 of one block for 32 pixels, under timm's names."""
    return dict(build(msgspec.structs.replace(find(NAME).change_size(32, 32), depth=1)).state_dict())


NAME = "vit_tiny_patch16_224"


@pytest.fixture
def kit(tmp_path: Path, tiny_artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> Kit:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.environ["PATH"])  # a scenario may put a program before others
    pixels = np.random.default_rng(0)
    for name in range(12):
        (tmp_path / "images" / str(name)).mkdir(parents=True)
        for number in range(3):
            image = Image.fromarray(pixels.integers(0, 255, (20, 30, 3), dtype=np.uint8))
            image.save(tmp_path / "images" / str(name) / f"{number}.png")
    weights = tiny_artifact.folder / "weights.safetensors"
    words = {"ARTIFACT": tiny_artifact.folder, "FILE": weights, "IMAGE": "images/0/0.png", "DIR": "images", "OUT": "out"}
    return Kit(tmp_path, {word: shlex.quote(str(value)) for word, value in words.items()})


def export_named(kit: Kit, line: str) -> None:
    save_file(timm_state(), "timm.safetensors")
    kit.run(line, NAME=NAME, FILE="timm.safetensors")
    assert Artifact.open(kit.folder / "out").spec.name == NAME


def export_module(kit: Kit, line: str) -> None:
    (kit.folder / "own.py").write_text(CODE)
    (kit.folder / "own.toml").write_text("height = 8\nwidth = 12\nresize = 'stretch'\n")
    kit.run(line, **{"FILE.py:FUNCTION": "own.py:plain", "CONTRACT.toml": "own.toml"})


def validate_module(kit: Kit, line: str) -> None:
    """Both lines that say how the code of an artifact without weights is compared with it."""
    (kit.folder / "own.py").write_text(f"{CODE}\n\ndef same():\n    torch.manual_seed(0)\n    return plain()\n")
    (kit.folder / "own.toml").write_text("height = 8\nwidth = 12\nresize = 'stretch'\n")
    kit.run("vitdeploy export --module own.py:same --contract own.toml -o OUT")
    made = Artifact.open(kit.folder / "out")
    if "FUNCTION" in line:  # somebody else's file
        made = Artifact(made.folder, msgspec.structs.replace(made.record, origin=Origin(), files={}))
    with pytest.raises(InputError) as caught:
        require_weights(made)
    advised = caught.value.fix.partition(": ")[2]
    values = [made.model if "FUNCTION" in line else made.folder, "own.py:same"]
    assert shlex.split(advised) == shlex.split(line.replace("{}", str(values[0]), 1).replace("{}", values[1]))
    kit.run(line, *values, **{"FILE.py:FUNCTION": "own.py:same"})


def build_module(kit: Kit, line: str) -> None:
    """A recipe that imports code, in a folder of its own: nothing is imported until the line that its error names is run."""
    (kit.folder / "a job").mkdir()
    (kit.folder / "a job" / "own.py").write_text(CODE)
    (kit.folder / "a job" / "own.toml").write_text("height = 8\nwidth = 12\nresize = 'stretch'\n")
    model = "[model]\nmodule = true\nsource = 'own.py:plain'\ncontract = 'own.toml'\n"
    (kit.folder / "a job" / "job.toml").write_text(model + "[export]\nprove_batches = [1, 2]\n")
    with pytest.raises(VitdeployError) as caught:
        vitdeploy.build("a job/job.toml", "none")
    advised = caught.value.fix.partition(": ")[2]
    assert shlex.split(advised) == kit.split(line, "a job/job.toml", kit.folder / "a job" / "own.py:plain")
    assert main(shlex.split(advised)[1:]) == 0


def export_folder(kit: Kit, line: str) -> None:
    """The folder that two messages name: of config.json beside weights, and of a part that was given alone."""
    folder = kit.folder / "a folder"
    folder.mkdir()
    save_file(timm_state(), folder / "model.safetensors")
    (folder / "config.json").write_text(f'{{"architecture": "{NAME}", "model_args": {{"depth": 1}}}}')
    with pytest.raises(VitdeployError, match="give the folder: ") as caught:
        vitdeploy.export(vitdeploy.ModelConfig(source=str(folder / "config.json")), vitdeploy.ExportConfig(), kit.folder / "none")
    assert caught.value.fix == f"give the folder: {line.replace('{}', shlex.quote(str(folder)))}"
    kit.run(line, folder)


def join_shards(kit: Kit, line: str) -> None:
    import torch.distributed.checkpoint as dcp

    folder = kit.folder / "step 9"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one process, which is meant
        dcp.save({"model": timm_state()}, checkpoint_id=str(folder), no_dist=True)
    with pytest.raises(InputError) as caught:
        read(folder)
    assert caught.value.fix.startswith(f"run: {line} ")
    kit.start(caught.value.fix.removeprefix("run: "))
    assert read(kit.folder / "step 9.pth").state.keys() == timm_state().keys()


def extract(kit: Kit, line: str) -> None:
    """The three parts of the line that VD3018 puts together."""
    import argparse

    torch.save({"state_dict": {"a.weight": torch.ones(3)}, "args": argparse.Namespace(lr=1)}, "best.pth.tar")
    with pytest.raises(InputError) as caught:
        read(Path("best.pth.tar"))
    kit.start(caught.value.fix.removeprefix("where it was made, run: "))
    assert list(read(Path("best-weights.pth")).state) == ["a.weight"]


class Adapted(nn.Linear):
    """What peft makes of a model, as far as the advice goes."""

    def merge_and_unload(self) -> Adapted:
        return self

    def save_pretrained(self, folder: str) -> None:
        Path(folder).mkdir()


def evaluate(kit: Kit, line: str) -> None:
    model = Adapted(2, 2)
    state, checkpoint = model.state_dict(), {"net": model.state_dict()}
    exec(line.replace("{}", "'net'"), {"torch": torch, "model": model, "state": state, "checkpoint": checkpoint})
    made = next(path for path in kit.folder.iterdir() if path.name != "images")
    assert made.is_dir() or read(made).state.keys() == state.keys()


def remove_parametrizations(kit: Kit, line: str) -> None:
    module = nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))
    exec(line, {"torch": torch, "module": module, "name": "weight"})
    assert "weight" in module.state_dict()


def install(kit: Kit, line: str) -> None:
    """Nothing is installed by a test: the extra, or the package, is one that pyproject.toml names."""
    named = shlex.split(line)[-1]
    text = (ROOT.parent / "pyproject.toml").read_text()
    extra = re.fullmatch(r"vitdeploy\[(.+)\]", named)
    pattern = rf"^{re.escape(extra[1])} = \[" if extra else rf'"{re.escape(named)}\b'
    assert named == "vitdeploy[{}]" or re.search(pattern, text, re.M), named


def trust_in(kit: Kit, line: str) -> None:
    """Programs of others that a test can't rely on."""
    assert line.split()[0] in ("git", "python3")


def command(*values: object, exits: tuple[int, ...] = (0,), **words: object) -> Callable[[Kit, str], None]:
    return lambda kit, line: kit.run(line, *values, exits=exits, **words)


def on_artifact(*values: object, exits: tuple[int, ...] = (0,)) -> Callable[[Kit, str], None]:
    return lambda kit, line: kit.run(line, shlex.split(kit.words["ARTIFACT"])[0], *values, exits=exits)


def on_bundle(*values: object) -> Callable[[Kit, str], None]:
    """On a bundle that is signed."""

    def follow(kit: Kit, line: str) -> None:
        artifact = shlex.split(kit.words["ARTIFACT"])[0]
        vitdeploy.keygen("key")
        vitdeploy.pack([artifact], vitdeploy.PackConfig(sign="key"), "bundle.vdb")
        kit.run(line, *values, BUNDLE="bundle.vdb")

    return follow


def sign_bundle(kit: Kit, line: str) -> None:
    vitdeploy.keygen("key")
    kit.run(line, "key", KEY="key", **{"OUT.vdb": "out.vdb"})
    assert vitdeploy.verify("out.vdb", vitdeploy.VerifyConfig(key="key.pub")).key


def on_embedding(kit: Kit, line: str) -> None:
    kit.run(line, **{"FILE.npy": "vectors.npy"})
    assert np.load("vectors.npy").shape == (1, 12)


ELSEWHERE = (0, 4)
"""Exit statuses of what needs an engine that this machine may lack: the line is understood, and the engine is asked for."""


def on_box(kit: Kit, line: str) -> None:
    """A box that is a folder here, whose Python is this one, with two releases. `ssh` is the first on the path."""
    place = make_place(kit.folder / "box", f"PATH={Path(sys.executable).parent}:$PATH; ")
    os.environ["PATH"] = f"{place.ssh.parent}:{os.environ['PATH']}"
    vitdeploy.keygen("key")
    for number in (1, 2):
        vitdeploy.pack([kit.words["ARTIFACT"]], vitdeploy.PackConfig(sign="key", release=number), f"{number}.vdb")
        vitdeploy.push(f"{number}.vdb", "user@box", vitdeploy.PushConfig(key="key.pub"))
    kit.run(line, "user@box", BUNDLE="2.vdb")


SCENARIOS: dict[str, Callable[[Kit, str], None]] = {
    "vitdeploy doctor": command(exits=ELSEWHERE),
    "vitdeploy explain": command(),
    "vitdeploy explain VD3014": command(),
    "vitdeploy models": command(),
    "vitdeploy schema": command(),
    "vitdeploy export --help": command(),
    "vitdeploy inspect FILE": command(),
    "vitdeploy inspect ARTIFACT": command(),
    "vitdeploy inspect {}": on_artifact(),
    "vitdeploy validate {}": on_artifact(),
    "vitdeploy validate {} --data DIR": on_artifact(),
    "vitdeploy validate ARTIFACT --data DIR": command(),
    "vitdeploy build {} --module {}": build_module,
    "vitdeploy validate {} --against {}": validate_module,
    "vitdeploy validate {} --against FILE.py:FUNCTION": validate_module,
    "vitdeploy validate ARTIFACT -o FILE.json": command(**{"FILE.json": "report.json"}),
    "vitdeploy bench {}": on_artifact(),
    "vitdeploy bench ARTIFACT": command(),
    "vitdeploy predict {} IMAGE": on_artifact(),
    "vitdeploy predict ARTIFACT IMAGE --json": command(),
    "vitdeploy predict ARTIFACT IMAGE -o FILE.npy": on_embedding,
    "vitdeploy compile {} --backend {} -o OUT": on_artifact("onnxruntime"),
    "vitdeploy compile ARTIFACT --backend {} -o OUT": command("onnxruntime"),
    "vitdeploy compile ARTIFACT --backend tensorrt -o OUT": command(exits=ELSEWHERE),
    "vitdeploy quantize ARTIFACT --backend tensorrt --data DIR -o OUT": command(),
    "vitdeploy quantize ARTIFACT --precision int8 --backend tensorrt --data DIR -o OUT": command(),
    "vitdeploy quantize ARTIFACT --precision fp16 --backend tensorrt --data DIR -o OUT": command(),
    "vitdeploy export {} -o vit": command(NAME),
    "vitdeploy export {} -o OUT": export_folder,
    "vitdeploy export NAME --weights FILE -o OUT": export_named,
    "vitdeploy export --module FILE.py:FUNCTION --contract CONTRACT.toml -o OUT": export_module,
    "vitdeploy compile BUNDLE --backend {} -o OUT": on_bundle("openvino"),
    "vitdeploy gate ARTIFACT -o FILE.json": command(exits=(0, 1), **{"FILE.json": "verdict.json"}),
    "vitdeploy push BUNDLE {}": on_box,
    "vitdeploy rollback {}": on_box,
    "vitdeploy status {}": on_box,
    "vitdeploy keygen -o KEY": command(KEY="key"),
    "vitdeploy pack ARTIFACT -o OUT.vdb": command(**{"OUT.vdb": "out.vdb"}),
    "vitdeploy pack ARTIFACT --sign KEY -o OUT.vdb": sign_bundle,
    "vitdeploy pack ARTIFACT --sign {} -o OUT.vdb": sign_bundle,
    "vitdeploy verify BUNDLE": on_bundle(),
    "vitdeploy verify {} --run": on_bundle("bundle.vdb"),
    "vitdeploy verify {} --key {} --run": on_bundle("bundle.vdb", "key.pub"),
    "python -c {}": extract,
    'torch.load({}, map_location="cpu", weights_only=False)': extract,
    "torch.save(checkpoint{}, {})": extract,
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch": join_shards,
    'torch.save(model.state_dict(), "weights.pth")': evaluate,
    'torch.save(state, "weights.pth")': evaluate,
    'torch.save(checkpoint[{}], "weights.pth")': evaluate,
    'torch.save(model.merge_and_unload().state_dict(), "merged.pth")': evaluate,
    'model.merge_and_unload().save_pretrained("merged")': evaluate,
    "torch.nn.utils.parametrize.remove_parametrizations(module, name)": remove_parametrizations,
    "sha256sum FILE": lambda kit, line: kit.start(line).index(" ") and None,
    "pip install 'vitdeploy[{}]'": install,
    "pip install 'vitdeploy[openvino]'": install,
    "pip install 'vitdeploy[quantize]'": install,
    "pip install 'vitdeploy[tensorrt]'": install,
    "pip install tensorrt": install,
    "pip install tensorrt-rtx": install,
    "git lfs pull": trust_in,
    "git lfs install": trust_in,
    "python3 -m venv --system-site-packages": trust_in,
}
_SECONDS = (
    "vitdeploy quantize",
    "vitdeploy export {}",
    "vitdeploy bench",
    "vitdeploy doctor",
    "python -m",
    "torch.load",
    "torch.save(checkpoint",
    "torch.save(model",
    "vitdeploy export NAME",
    "vitdeploy export --module",
)
SLOW = frozenset(line for line in SCENARIOS if line.startswith(_SECONDS))


def test_every_line_that_is_advised_is_run() -> None:
    lines = {
        line: place for line, place in collect().items() if not re.fullmatch(rf"vitdeploy ({VERBS})", line) or line in SCENARIOS
    }
    assert {line: place for line, place in lines.items() if line not in SCENARIOS} == {}, "write a scenario that follows it"
    assert SCENARIOS.keys() - lines.keys() == set(), "nothing advises these any more"


def test_a_command_without_arguments_in_a_sentence_is_a_name_and_no_line() -> None:
    """`vitdeploy compile` may be spoken of; after "run:" it is a line, and needs what it can't do without."""
    needing = r"vitdeploy (?:export|quantize|compile|validate|bench|predict|build|inspect)"
    for path in sorted(ROOT.rglob("*.py")):
        for node, text in read_texts(ast.parse(path.read_text())):
            assert not re.search(rf"(?:run|with|instead|again): {needing}(?! [-A-Z{{])", text), f"{path}:{node.lineno}: {text}"


def test_options_that_messages_name_exist() -> None:
    import typer.main

    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    options = {name for each in commands for parameter in each.params for name in (*parameter.opts, *parameter.secondary_opts)}
    others = {"--help", "--system-site-packages", "--version", *ALIASES}
    for path in sorted(ROOT.rglob("*.py")):
        if path.name in ("trtexec.py", "inspection.py"):  # another program's command line
            continue
        for node, text in read_texts(ast.parse(path.read_text())):
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+(?![\w{-])", text):
                assert option in options | others, f"{path}:{node.lineno}: {text}"


@pytest.mark.parametrize("line", [pytest.param(line, marks=[pytest.mark.slow] * (line in SLOW)) for line in SCENARIOS])
def test_the_line_works(line: str, kit: Kit, request: pytest.FixtureRequest) -> None:
    if SCENARIOS[line] is on_embedding:
        kit.words["ARTIFACT"] = shlex.quote(str(request.getfixturevalue("tiny_embedding").folder))
    SCENARIOS[line](kit, line)
