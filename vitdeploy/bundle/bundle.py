"""A bundle as it lies there, a folder or one file: opened only when it holds exactly what its manifest lists."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import msgspec

from vitdeploy import files
from vitdeploy.artifact import RECORD, Artifact
from vitdeploy.bundle import archive, manifest, signature
from vitdeploy.bundle.manifest import Manifest, PackedModel
from vitdeploy.bundle.p256 import PublicKey
from vitdeploy.errors import InputError, TrustError

MODELS, SAMPLES, EVIDENCE = "models", "samples", "evidence"
"""Folders of a bundle."""
EXPECTED = "expected.npz"
"""What belongs to the samples: prepared pixels and outputs."""
BOM = "bom.cdx.json"
_CHUNK = 1 << 20


class Bundle:
    """A bundle, opened by `open_bundle`.

    Attributes:
        path: The folder or file.
        manifest: What it holds.
        signature: What is in its signature; None when nobody has signed it.
    """

    def __init__(self, path: Path, stream: IO[bytes] | None, entries: Mapping[str, archive.Entry]) -> None:
        self.path, self._stream, self._entries = path, stream, entries
        self.manifest = self._read_manifest()
        self.signature = self.read(signature.FILE, signature.LARGEST) if signature.FILE in entries else None
        self._require_complete()

    @property
    def size(self) -> int:
        """Bytes of the files that the manifest lists."""
        return sum(each.size for each in self.manifest.files.values())

    def describe(self) -> dict[str, object]:
        """What its manifest says, for people."""
        held = self.manifest
        return {
            "id": held.id,
            "name": held.name,
            "release": held.release,
            **({"version": held.version} if held.version else {}),
            **({"licence": held.licence} if held.licence else {}),
            "models": {model.folder: f"{model.precision}, for {model.engine or 'any engine'}" for model in held.models},
            "signed": self.signature is not None,
            **({"gates": list(held.gates)} if held.gates else {}),
            "source": msgspec.to_builtins(held.source),
            "tools": held.tools,
        }

    def read(self, name: str, largest: int) -> bytes:
        """A file's bytes, compared with their digest where the manifest has it.

        Raises:
            InputError: VD3030, there is no such file, or it has more than ``largest`` bytes.
            TrustError: VD7007, it is not the one that the manifest lists.
        """
        size = self._entries[name].size if name in self._entries else None
        if size is None or size > largest:
            message = f"lacks {name}" if size is None else f"{name} has {size:,} bytes, {largest:,} are the most"
            raise InputError("VD3030", message, file=self.path, fix="get the bundle again from whoever packed it")
        content = b"".join(self.read_parts(name))
        if name not in (manifest.FILE, signature.FILE):
            self._require_digest(name, hashlib.sha256(content).hexdigest())
        return content

    def check(self, key: PublicKey | None = None) -> None:
        """Compare every file with its digest, and with the signature where a key is given.

        Raises:
            TrustError: VD7007, a file is not the one that the manifest lists; VD7006, it was not signed, or not with this key.
        """
        for name in self.manifest.files:
            self._require_digest(name, self._hash(name))
        if key is None:
            return
        if self.signature is None:
            fix = "get the signed bundle, or sign it: vitdeploy pack ARTIFACT --sign KEY -o OUT.vdb"
            raise TrustError("VD7006", "is not signed", file=self.path, fix=fix)
        digests = {name: each.sha256 for name, each in self.manifest.files.items()} | {manifest.FILE: self.manifest.id}
        signature.verify(self.signature, key, digests, self.path)

    def take_model(self, model: PackedModel, folder: Path) -> Artifact:
        """Copy a model out, each file compared with its digest on its way, and open it.

        Args:
            model: One of `Manifest.models`.
            folder: Empty.

        Raises:
            TrustError: VD7007, a file is not the one that the manifest lists, or the model not the one that is described.
            InputError: As `Artifact.open`.
            MachineError: VD4002, the disk has no room.
        """
        files.need_space(folder, model.size)
        for name in self.list_below(model.folder):
            self.copy(name, folder / name.removeprefix(f"{model.folder}/"))
        artifact = Artifact.open(folder)
        if artifact.id != model.id:
            raise self._distrust(f"{model.folder} is another model than the manifest says")
        return artifact

    def copy(self, name: str, path: Path) -> None:
        """Copy a file out, compared with its digest on its way.

        Raises:
            TrustError: VD7007, it is not the one that the manifest lists.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with path.open("wb") as target:
            for part in self.read_parts(name):
                digest.update(part)
                target.write(part)
        self._require_digest(name, digest.hexdigest())

    def list_below(self, folder: str) -> list[str]:
        """Names of the files in a folder of the bundle, sorted."""
        return sorted(name for name in self.manifest.files if name.startswith(f"{folder}/"))

    def _read_manifest(self) -> Manifest:
        if manifest.FILE not in self._entries:
            raise InputError(
                "VD3030",
                f"is no bundle (no {manifest.FILE} in it)",
                file=self.path,
                fix="run: vitdeploy pack ARTIFACT -o OUT.vdb",
            )
        try:
            return manifest.read_manifest(self.read(manifest.FILE, manifest.LARGEST))
        except ValueError as exc:
            fix = "get the bundle again from whoever packed it"
            raise InputError("VD3030", f"has a manifest that can't be read: {exc}", file=self.path, fix=fix) from exc

    def _require_complete(self) -> None:
        """Refuse files that the manifest does not list, that are not there, or of another size."""
        listed = self.manifest.files
        there = {name: entry.size for name, entry in self._entries.items() if name not in (manifest.FILE, signature.FILE)}
        for name in sorted({*listed, *there}):
            if name not in listed:
                raise self._distrust(f"holds {name}, which its manifest does not list")
            if name not in there:
                raise self._distrust(f"lacks its file {name}")
            if there[name] != listed[name].size:
                raise self._distrust(f"{name} has {there[name]:,} bytes, {listed[name].size:,} are listed")
        for model in self.manifest.models:
            if f"{model.folder}/{RECORD}" not in listed:
                raise self._distrust(f"lacks the model {model.folder}")
        for name in self.manifest.samples:
            if f"{SAMPLES}/{name}" not in listed:
                raise self._distrust(f"lacks the sample {name}")

    def read_parts(self, name: str, start: int = 0) -> Iterator[bytes]:
        """A file's bytes from one of them on, a part at a time, compared with nothing."""
        if self._stream is not None:
            entry = self._entries[name]
            yield from archive.read_parts(self._stream, entry._replace(start=entry.start + start, size=entry.size - start))
            return
        with files.open_regular(self.path / name) as stream:
            stream.seek(start)
            while chunk := stream.read(_CHUNK):
                yield chunk

    def _hash(self, name: str) -> str:
        digest = hashlib.sha256()
        for part in self.read_parts(name):
            digest.update(part)
        return digest.hexdigest()

    def _require_digest(self, name: str, digest: str) -> None:
        if digest != self.manifest.files[name].sha256:
            raise self._distrust(f"{name} changed after it was packed")

    def _distrust(self, message: str) -> TrustError:
        return TrustError("VD7007", message, file=self.path, fix="get the bundle again from whoever packed it")


def is_bundle(path: Path) -> bool:
    """Whether a path is meant as a bundle: a file with its suffix, or a folder with a manifest and models."""
    return path.suffix == archive.SUFFIX or ((path / manifest.FILE).is_file() and (path / MODELS).is_dir())


@contextmanager
def open_bundle(path: Path) -> Iterator[Bundle]:
    """Open a bundle. What is in it has been listed, and not yet compared with its digests; see `Bundle.check`.

    Raises:
        InputError: VD3001, nothing is there, or no file; VD3030, it is no bundle, or damaged.
        TrustError: VD7007, it holds other files than its manifest lists, or something that is no file.
    """
    with ExitStack() as stack:
        if path.is_dir():
            yield Bundle(path, None, _list_folder(path))
            return
        try:
            stream = stack.enter_context(files.open_regular(path))
        except OSError as exc:
            raise InputError("VD3001", f"can't be read: {exc.strerror}", file=path) from exc
        yield Bundle(path, stream, archive.list_entries(stream, path))


def _list_folder(path: Path) -> dict[str, archive.Entry]:
    """Every file below a folder, links and other things refused."""
    entries: dict[str, archive.Entry] = {}
    for root, folders, names in os.walk(path):
        for name in (*folders, *names):
            place = Path(root, name)
            facts, below = place.lstat(), place.relative_to(path).as_posix()
            if name in folders and stat.S_ISDIR(facts.st_mode):
                continue
            if not stat.S_ISREG(facts.st_mode) or not archive.is_name(below) or len(entries) >= archive.MOST:
                fix = "get the bundle again from whoever packed it"
                raise TrustError("VD7007", f"holds {below!r}, which no bundle has", file=path, fix=fix)
            entries[below] = archive.Entry(below, 0, facts.st_size)
    return entries
