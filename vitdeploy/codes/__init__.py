"""Every error code: what it means, a line that one sees, and what to do; printed by `vitdeploy explain`.

The first digit of a code is the exit status of its class (see `vitdeploy.errors`).
"""

from __future__ import annotations

from vitdeploy.codes import devices, environment, files_and_weights, images_and_data, trust, usage
from vitdeploy.codes.code import Code

__all__ = ["CODES", "Code"]

CODES: dict[str, Code] = {
    **usage.CODES,
    **files_and_weights.CODES,
    **images_and_data.CODES,
    **environment.CODES,
    **devices.CODES,
    **trust.CODES,
}
"""Code to what is to be said of it."""
