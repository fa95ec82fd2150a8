"""What was asked of an engine: what it does not have is refused; a compiled artifact's settings lie under the caller's."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.table import require_fit
from vitdeploy.errors import UsageError
from vitdeploy.recipe import CompileConfig
from vitdeploy.record import CompileProof

_OF_THE_VERB = ("keep_original",)
"""Settings of `compile` that no engine hears of."""


def require_only(name: str, config: OpenConfig | CompileConfig, takes: Collection[str]) -> None:
    """Refuse a setting that a backend does not have: ignored in silence, it would be believed to be in force.

    Args:
        name: The backend, for the message.
        config: What was asked.
        takes: Fields that the backend has; the others must have their defaults.

    Raises:
        UsageError: VD2011.
    """
    for field in msgspec.structs.fields(config):
        if field.name not in (*takes, *_OF_THE_VERB) and getattr(config, field.name) != field.default:
            raise UsageError("VD2011", f"the backend {name!r} has no setting {field.name!r}", fix="leave it out")


def merge_settings(name: str, artifact: Artifact, config: OpenConfig, takes: Collection[str]) -> OpenConfig:
    """The caller's settings, and what the artifact brings where the caller gives nothing.

    Args:
        name: The backend.
        artifact: An ONNX artifact, or one that this backend has compiled.
        config: The caller's.
        takes: As for `require_only`.

    Raises:
        UsageError: VD2011, a setting that the backend does not have; VD2013, the artifact is another engine's.
    """
    require_fit(name, artifact)
    require_only(name, config, takes)
    proof = artifact.record.proof
    brought = proof.run if isinstance(proof, CompileProof) and artifact.record.kind == name else OpenConfig()
    fields = msgspec.structs.fields(config)
    given = {field.name: value for field in fields if (value := getattr(config, field.name)) != field.default}
    whole = msgspec.structs.replace(brought, **given)
    require_only(name, whole, takes)
    for field_name in ("threads", "streams"):
        count = getattr(whole, field_name)
        if count is not None and count < 1:
            raise UsageError("VD2003", f"{field_name} is {count}", fix="use 1 or more")
    return whole
