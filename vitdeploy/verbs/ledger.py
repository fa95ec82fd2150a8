"""What a build has done already: ``build.json`` in its folder, which a build that was killed goes on from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import msgspec

from vitdeploy import files
from vitdeploy.artifact import OURS, RECORD, Artifact, read_record, set_key
from vitdeploy.errors import InputError, VitdeployError, first_line
from vitdeploy.jsonfile import encode
from vitdeploy.progress import Progress
from vitdeploy.recipe import Recipe
from vitdeploy.verbs.keys import artifact_digest

LEDGER, RECIPE = "build.json", "recipe.toml"
MAKERS = ("export", "quantize", "compile")
"""Verbs whose stages leave an artifact, in a folder of the stage's name: the verb's, or ``VERB-ENGINE`` of several engines."""
VERBS = (*MAKERS, "validate", "bench")
SCHEMA = 1


class Done(msgspec.Struct, frozen=True):
    """A finished stage.

    Attributes:
        key: Digest of everything it was made from.
        digest: Digest of its result.
    """

    key: str
    digest: str


NOT_DONE = Done(key="", digest="")
"""Of a stage that has to be made again, whatever lies there."""


class Ledger(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What ``build.json`` says: the finished stages.

    Attributes:
        schema_version: Version of this record.
        stages: Stage to what it left.
    """

    schema_version: int = SCHEMA
    stages: dict[Annotated[str, msgspec.Meta(pattern=rf"^({'|'.join(VERBS)})(-[a-z0-9-]+)?$")], Done] = {}


@contextmanager
def open_line(out: Path, force: bool, progress: Progress) -> Iterator[Line]:
    """A build's folder for this process alone; see `Line`.

    Raises:
        UsageError: VD2008, the folder is not ours, can't be written, or another build is writing there.
        InputError: VD3010, its ``build.json`` is none that vitdeploy wrote, or damaged.
    """
    files.check_output(out, ours=files.Ours(LEDGER, None))
    with files.hold(out):
        yield Line(out, force, progress)


class Line:
    """A build's folder with what is already done in it.

    Args:
        out: The folder.
        force: Nothing counts as done.
        progress: Hears of what is skipped.
    """

    def __init__(self, out: Path, force: bool, progress: Progress) -> None:
        self.out, self.force, self.progress = out, force, progress
        files.sweep_inside(out)
        self.ledger = self._read()
        if force:
            self.ledger = Ledger(stages=dict.fromkeys(self.ledger.stages, NOT_DONE))
        self.left_out: dict[str, str] = {}
        """Stage to why it could not be had, where the others go on without it."""
        self._write()  # from now on the folder is ours, also when this process is killed

    def _read(self) -> Ledger:
        """The ledger that lies there; a damaged one beside a recipe of ours is begun again when that is asked for."""
        if not (self.out / LEDGER).exists():
            return Ledger()
        try:
            return read_ledger(self.out / LEDGER)
        except InputError:
            if self.force:
                with suppress(VitdeployError):
                    Recipe.load(self.out / RECIPE)
                    return Ledger()
            raise

    def result(self, stage: str) -> Path:
        """Where a stage leaves what it makes."""
        return self.out / (stage if _makes(stage) else f"{stage}.json")

    def digest(self, stage: str) -> str:
        """Digest of a stage's result as it lies on disk; "" when it is missing or damaged."""
        path = self.result(stage)
        try:
            if _makes(stage):
                return artifact_digest(Artifact.open(path))  # compares every file with the record
            return files.sha256(path)
        except (OSError, VitdeployError):
            return ""

    def is_done(self, stage: str, key: str) -> bool:
        """Whether the stage can be skipped; says so, or removes what will no longer be true."""
        if self._has(stage, key):
            self.progress(f"{stage}: unchanged, skipped", 1, 1)
            return True
        for name in ("report.json", "report.md", "report.html"):
            (self.out / name).unlink(missing_ok=True)
        return False

    def _has(self, stage: str, key: str) -> bool:
        """Whether the result lies here, unchanged.

        An artifact says itself what it was made from: one that was made just before this process was killed, and is in no
        ledger yet, counts.
        """
        done, digest = self.ledger.stages.get(stage), self.digest(stage)
        if done is not None and done.key == key:
            return done.digest == digest != ""
        if not _makes(stage) or self.force or not digest or read_record(self.result(stage) / RECORD).key != key:
            return False
        self.finish(stage, key)
        return True

    def keep(self, artifact: Artifact, stage: str, key: str) -> Artifact:
        """Record an artifact that was just made, here and in itself."""
        artifact = set_key(artifact, key)
        self.finish(stage, key)
        return artifact

    def finish(self, stage: str, key: str) -> None:
        """Record a stage; when the artifact is another than before, the numbers that lie here are of another model and go."""
        old, digest = self.ledger.stages.get(stage), self.digest(stage)
        self.ledger.stages[stage] = Done(key, digest)
        if _makes(stage) and (old is None or old.digest != digest):
            self.keep_only(name for name in self.ledger.stages if _rank(name) <= _rank(stage))
        self._write()

    def leave_out(self, stage: str, error: VitdeployError) -> None:
        """Go on without a stage; what an earlier build left of it goes."""
        self.left_out[stage] = error.message
        self.keep_only(set(self.ledger.stages) - {stage})
        self.progress(f"{stage}: left out: {error.message}", 1, 1)

    def keep_only(self, stages: Iterable[str]) -> None:
        """Remove what is not, or no longer, part of the build."""
        for stage in {*self.ledger.stages, *VERBS[len(MAKERS) :]} - set(stages):
            self.ledger.stages.pop(stage, None)
            path = self.result(stage)
            if _makes(stage):
                files.discard(path, ours=OURS)
            else:
                path.unlink(missing_ok=True)
        self._write()

    def _write(self) -> None:
        files.write(self.out / LEDGER, encode(self.ledger))


def _rank(stage: str) -> int:
    """The place of a stage's verb on the line: what lies behind is made from what lies before."""
    return VERBS.index(stage.partition("-")[0])


def _makes(stage: str) -> bool:
    """Whether a stage leaves an artifact."""
    return stage.partition("-")[0] in MAKERS


def read_ledger(path: Path) -> Ledger:
    """``build.json`` of a build's folder.

    Raises:
        InputError: VD3010, damaged, or of another version.
    """
    try:
        ledger = msgspec.json.decode(files.read_bytes(path, files.LARGEST_TEXT), type=Ledger)
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=path) from exc
    except (ValueError, RecursionError) as exc:
        message = f"is not a record that vitdeploy wrote: {first_line(exc)}"
        raise InputError("VD3010", message, file=path, fix="make it again") from exc
    if ledger.schema_version != SCHEMA:
        message = f"has schema version {ledger.schema_version}, this vitdeploy reads {SCHEMA}"
        raise InputError("VD3010", message, file=path, fix="use --force, or another folder")
    return ledger
