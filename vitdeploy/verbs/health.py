"""What a box runs of a release before it serves it: ``python -m vitdeploy.verbs.health BUNDLE ANSWER [BACKEND]``.

It is `verify --run`, with the answer in a file: engines print what they like on stdout. A box needs no command line for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path


def write_health(bundle: Path, answer: Path, backend: str = "") -> bool:
    """Run a bundle on its samples, and write what came of it.

    Args:
        bundle: The bundle.
        answer: File to write: ``passed``, ``words`` where it did not pass, and ``verification``.
        backend: The engine; "" for the first that is installed.

    Returns:
        Whether it passed.
    """
    health: dict[str, object]
    try:
        health = _verify(bundle, backend)
    except ModuleNotFoundError as exc:
        words = (
            f"the package {exc.name} is not installed for {sys.executable}; the box needs numpy, pillow, msgspec and one engine"
        )
        health = {"passed": False, "words": words, "verification": None}
    answer.write_text(json.dumps(health))
    return bool(health["passed"])


def _verify(bundle: Path, backend: str) -> dict[str, object]:
    import msgspec

    from vitdeploy.errors import VitdeployError
    from vitdeploy.verbs.verifier import VerifyConfig, verify

    try:
        verification = verify(bundle, VerifyConfig(run=True, backend=backend or None))
    except VitdeployError as exc:
        return {"passed": False, "words": str(exc), "verification": None}
    missed = [check for check in verification.checks if check.outcome != "pass"]
    words = "; ".join(f"{check.name} is {check.metric.value:.3g}, {check.limit}" for check in missed if check.metric is not None)
    builtins = json.loads(msgspec.json.encode(verification))
    return {"passed": verification.passed, "words": words, "verification": builtins}


def main(arguments: Sequence[str]) -> int:
    """The program: exit status 0 if all holds, else 1."""
    bundle, answer, backend = (*arguments, "")[:3]
    return 0 if write_health(Path(bundle), Path(answer), backend) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
