"""JSON Schemas of everything that is written as JSON: by ``--json``, with ``-o``, and beside models.

They are made of the types that write, so none can be out of date. Numbers may also be the strings that stand for NaN and
infinity, see `jsonfile`.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal, NamedTuple

import msgspec

from vitdeploy.errors import UsageError, nearest

DIALECT = "https://json-schema.org/draft/2020-12/schema"
INFINITIES = ("NaN", "Infinity", "-Infinity")


class Source(NamedTuple):
    """Where a JSON comes from.

    Attributes:
        type: ``module:name`` of what it is.
        written: In a few words.
        key: The one key that holds it, or a list of it, beside ``schema_version``; "" where it is the whole.
        listed: Whether it is a list.
    """

    type: str
    written: str
    key: str = ""
    listed: bool = False


SOURCES: dict[str, Source] = {
    "report": Source("report:Report", "`validate`, `bench` and `build`: --json, -o FILE.json; report.json of a build"),
    "verdict": Source("report:Verdict", "`gate`: --json, -o FILE.json"),
    "baseline": Source("proof.baseline:Baseline", "`gate --update-baseline`"),
    "page": Source("verbs.reporter:Page", "`report`: --json"),
    "artifact": Source("artifact:Record", "artifact.json in a model's folder"),
    "made": Source("cli.schemas:Made", "`export`, `quantize` and `compile`: --json"),
    "command": Source("cli.schemas:Command", "`compile --print-trtexec`: --json"),
    "build": Source("verbs.ledger:Ledger", "build.json in a build's folder"),
    "manifest": Source("bundle.manifest:Manifest", "manifest.json in a bundle"),
    "packed": Source("verbs.packer:Packed", "`pack`: --json"),
    "verification": Source("verbs.verifier:Verification", "`verify`: --json"),
    "keys": Source("verbs.signer:Keys", "`keygen`: --json"),
    "shipped": Source("fleet.outcomes:Shipped", "`push` and `rollback`: --json"),
    "box": Source("fleet.outcomes:BoxState", "`status`: --json"),
    "predictions": Source("verbs.predictor:Prediction", "`predict`: --json", "predictions", listed=True),
    "prediction": Source("verbs.predictor:Prediction", "`predict -o FILE.jsonl`, a line"),
    "summary": Source("verbs.predictor:Summary", "`predict -o FILE.jsonl`: --json"),
    "inspection": Source("verbs.inspector:Inspection", "`inspect`: --json"),
    "checkup": Source("verbs.doctor:Checkup", "`doctor`: --json"),
    "models": Source("cli.schemas:Model", "`models`: --json", "models", listed=True),
    "codes": Source("cli.schemas:ExplainedCode", "`explain`: --json", "codes", listed=True),
    "error": Source("cli.schemas:Failure", "any command that failed: --json", "error"),
}


class Made(msgspec.Struct, kw_only=True):
    """What a verb wrote."""

    schema_version: Literal[1]
    path: str
    id: str
    record: Any


class Command(msgspec.Struct, kw_only=True):
    """The command line that would build an engine in another program."""

    schema_version: Literal[1]
    command: list[str]


class Model(msgspec.Struct, kw_only=True):
    """A model that is known by name."""

    name: str
    parameters: int
    macs: int
    image_size: tuple[int, int]
    patch: tuple[int, int]
    source: str


class ExplainedCode(msgspec.Struct, kw_only=True):
    """An error code."""

    code: str
    exit: int
    meaning: str
    example: str
    remedy: str


class Failure(msgspec.Struct, kw_only=True):
    """What went wrong."""

    code: str
    file: str | None
    message: str
    fix: str
    exit: int


def make_schema(name: str) -> dict[str, object]:
    """The JSON Schema (2020-12) of one of `SOURCES`.

    Raises:
        UsageError: VD2003, there is none of that name.
    """
    if name not in SOURCES:
        raise UsageError("VD2003", f"there is no schema {name!r}", fix=nearest(name, SOURCES) or "run: vitdeploy schema")
    source = SOURCES[name]
    module, _, kind = source.type.partition(":")
    (whole,), parts = msgspec.json.schema_components(
        [getattr(importlib.import_module(f"vitdeploy.{module}"), kind)], schema_hook=_allow_all, ref_template="#/$defs/{name}"
    )
    if name == "made":
        (record,), more = msgspec.json.schema_components(
            [getattr(importlib.import_module("vitdeploy.artifact"), "Record")],  # noqa: B009 (as above, imported when asked)
            schema_hook=_allow_all,
            ref_template="#/$defs/{name}",
        )
        parts = {**parts, **more}
        parts["Made"]["properties"]["record"] = record
    if name == "artifact":  # the digest of the record itself is of no field: it is told of what is written
        from vitdeploy.artifact import OWN_DIGEST

        parts["Record"]["properties"][OWN_DIGEST] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    if source.key:
        value = {"type": "array", "items": whole} if source.listed else whole
        whole = {
            "type": "object",
            "properties": {"schema_version": {"const": 1}, source.key: value},
            "required": ["schema_version", source.key],
        }
    named = {"$schema": DIALECT, "title": f"vitdeploy {name}", "description": f"Written by {source.written}.", **whole}
    schema = _spell_out_infinities(named | ({"$defs": parts} if parts else {}))
    assert isinstance(schema, dict)
    return schema


def _allow_all(kind: type) -> dict[str, object]:
    """Of a type that says nothing."""
    return {"title": "Anything"}


def _spell_out_infinities(value: Any) -> Any:  # noqa: ANN401 (JSON)
    if isinstance(value, list):
        return [_spell_out_infinities(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("type") == "number":
        more = {key: item for key, item in value.items() if key in ("default", "description")}
        plain = {key: item for key, item in value.items() if key not in more}
        return {"anyOf": [plain, {"enum": list(INFINITIES)}], **more}
    return {key: _spell_out_infinities(item) for key, item in value.items()}
