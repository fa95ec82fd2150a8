"""Models on disk: a folder with the model's files, and its record."""

from vitdeploy.artifact.artifact import (
    METADATA_SPEC,
    Artifact,
    ArtifactLike,
    check_place,
    is_same_spec,
    sanitize,
    set_key,
)
from vitdeploy.artifact.recording import OURS, OWN_DIGEST, RECORD, SCHEMA, Record, encode, read_record, seal

__all__ = [
    "METADATA_SPEC",
    "OURS",
    "OWN_DIGEST",
    "RECORD",
    "SCHEMA",
    "Artifact",
    "ArtifactLike",
    "Record",
    "check_place",
    "encode",
    "is_same_spec",
    "read_record",
    "sanitize",
    "seal",
    "set_key",
]
