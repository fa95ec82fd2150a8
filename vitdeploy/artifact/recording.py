"""``artifact.json``: what an artifact says of itself, how it is written and read.

Records of schema 1, whose settings and proofs were tables without a type, are read as what they are now.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import msgspec

from vitdeploy import files, jsonfile
from vitdeploy.errors import InputError, UsageError
from vitdeploy.recipe import CompileConfig, ExportConfig, QuantizeConfig
from vitdeploy.record import Calibration, CompileProof, ExportProof, Origin, QuantizeProof
from vitdeploy.spec import ModelSpec
from vitdeploy.words import RecordPrecision

RECORD = "artifact.json"
SCHEMA = 2
OWN_DIGEST = "sha256"
"""Key of the record's digest of itself, which notices accidents: whoever changes a record on purpose can write another one."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``artifact.json`` says.

    Attributes:
        schema_version: Version of this record.
        kind: What the bytes are: ``onnx``, or what the backend of that name has compiled.
        precision: The arithmetic the weights were prepared for.
        entry: The file that an engine opens.
        weights: The PyTorch original's state dict (safetensors) in this folder, or None.
        original: Where, relative to this folder, lay what this was made of: the folder whose `weights` are the original's, or
            where there are none, the FP32 file or its folder.
        spec: The model and its input contract, as this file takes it.
        made_by: The verb that wrote it.
        config: That verb's settings.
        origin: Where the weights came from: file, SHA-256, or the seed of random ones.
        proof: What was run before the artifact was accepted, with the numbers.
        tools: Library to version.
        files: Name to SHA-256 of every file but the record.
        key: Digest of everything the artifact was made from, where `build` made it: it need not make an equal one again.
        parent: `Artifact.id` of the artifact it was made from.
        packed: Whether it lies in a bundle, or was copied out of one: nothing may point to where it is.
    """

    schema_version: int = SCHEMA
    kind: Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]{1,40}$")] = "onnx"
    precision: RecordPrecision = "fp32"
    entry: str = "model.onnx"
    weights: str | None = None
    original: str | None = None
    spec: ModelSpec
    made_by: str
    config: ExportConfig | QuantizeConfig | CompileConfig | None = None
    origin: Origin = Origin()
    proof: ExportProof | QuantizeProof | CompileProof | None = None
    tools: dict[str, str] = {}
    files: dict[str, str] = {}
    key: str = ""
    parent: str | None = None
    packed: bool = False

    @property
    def verdict(self) -> str:
        """What was said of it in one sentence; "" for nothing."""
        return self.proof.verdict if isinstance(self.proof, QuantizeProof | CompileProof) else ""

    @property
    def calibration(self) -> Calibration | None:
        """What set its ranges, or those of what it was compiled from."""
        return self.proof.calibration if isinstance(self.proof, QuantizeProof | CompileProof) else None

    @property
    def unproven(self) -> str:
        """What was left out of the proof, in a sentence; "" for nothing."""
        told = isinstance(self.proof, ExportProof) and self.origin.mapping_sha256 and not self.proof.against
        return "the mapping was not compared with the code it came from (--against package.file:factory)" if told else ""

    @property
    def audited(self) -> bool:
        """Whether it is an engine that has run where it was built."""
        return isinstance(self.proof, CompileProof) and self.proof.audit is not None


def seal(folder: Path, record: Record) -> Record:
    """Write ``artifact.json`` beside finished files, with their digests; the record that was written."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    record = msgspec.structs.replace(record, files={name: files.sha256(folder / name) for name in names})
    (folder / RECORD).write_text(encode(record))
    return record


def encode(record: Record) -> str:
    """The record as the text of ``artifact.json``, with the digest of all else in it."""
    table = json.loads(jsonfile.encode(record))
    return jsonfile.encode(table | {OWN_DIGEST: _digest(table)})


def _digest(table: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def read_record(path: Path, *, edited: bool = False) -> Record:
    """Read ``artifact.json``, of this schema or of schema 1.

    Args:
        path: The file.
        edited: Take one that was changed since it was written, too: whose it is can be told all the same.

    Raises:
        FileNotFoundError: It is not there.
        InputError: VD3010, it is unreadable, or of another schema.
    """
    try:
        table = json.loads(files.read_bytes(path, files.LARGEST_TEXT))
        if isinstance(table, dict):
            _check_schema(table.get("schema_version", SCHEMA), path)
            own = table.pop(OWN_DIGEST, None)  # none was written before
            if not edited and own is not None and own != _digest(table):
                message = "changed after it was written (its sha256 is of something else)"
                raise InputError("VD3010", message, file=path, fix="make the artifact again")
            table = _upgrade(table) if table.get("schema_version") == 1 else table
        return msgspec.convert(table, Record, strict=False)  # not strict: NaN and infinity were written as strings
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, UsageError) as exc:
        raise InputError("VD3010", f"has an unreadable record: {exc}", file=path, fix="make it again") from exc


def _check_schema(version: object, path: Path) -> None:
    if version not in (1, SCHEMA):
        message = f"has schema version {version}, this vitdeploy reads 1 to {SCHEMA}"
        raise InputError("VD3010", message, file=path, fix="make it again with this version")


def _upgrade(table: dict[str, Any]) -> dict[str, Any]:
    """A record of schema 1 as one of schema 2: settings and proof say of which verb they are, and numbers are numbers."""
    verb = table["made_by"]
    config, proof = table.get("config"), dict(table.get("proof") or {})
    if verb == "compile":
        facts = dict(proof.get("facts", {}))
        proof |= {"build_s": facts.pop("build_s", 0.0), "facts": facts}
    worth = proof.get("worth")
    if worth is not None:  # what was not a number was written as null
        metrics = {name: worth[name] for name in ("agreement", "divergence", "speedup", "other") if worth.get(name) is not None}
        proof["worth"] = worth | {name: {**each, "value": _number(each["value"])} for name, each in metrics.items()}
    return table | {
        "schema_version": SCHEMA,
        "config": {"verb": verb, **config} if config else None,
        "proof": {"verb": verb, **proof} if proof else None,
    }


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def list_files(folder: Path) -> set[str]:
    """Names that an artifact's record lists, and its own.

    Raises:
        FileNotFoundError: There is no record.
        InputError: VD3010, it is not valid.
    """
    return {RECORD, *read_record(folder / RECORD, edited=True).files}


OURS = files.Ours(RECORD, list_files)
"""How a folder is known to be an artifact."""
