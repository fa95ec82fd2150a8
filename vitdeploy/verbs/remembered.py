"""What a reference gave for images, kept on disk: several artifacts of one origin are compared with it, and it runs once.

A batch is known by its bytes, so whoever asks for other images, or for the same ones prepared in another way, gets a run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vitdeploy import files
from vitdeploy.backends.base import Kernel, OpenConfig, Outputs, Profile, Runner, Tensor
from vitdeploy.errors import library

_SETTINGS = "settings.json"


class Remembered:
    """A runner that is opened where something is asked that it was not asked before.

    Args:
        open: Opens it.
        config: How.
        folder: Where its outputs are kept: of this runner alone, and for as long as the caller likes.
    """

    batch: int | None = None

    def __init__(self, open: Callable[[OpenConfig], Runner], config: OpenConfig, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._open, self._config, self._folder = open, config, folder
        self._runner: Runner | None = None

    @property
    def settings(self) -> dict[str, object]:
        """As the runner's; see `Runner`."""
        path = self._folder / _SETTINGS
        if not path.is_file():
            path.write_text(json.dumps(self._require().settings))
        settings: dict[str, object] = json.loads(files.read_text(path))
        return settings

    def run(self, tensor: Tensor) -> Outputs:
        """Run one batch, or remember what it gave; see `Runner`.

        Raises:
            MachineError: VD4002, the disk is full; and as `Runner.run`.
        """
        about = f"{tensor.dtype} {tensor.shape} ".encode()
        path = self._folder / f"{hashlib.sha256(about + np.ascontiguousarray(tensor).tobytes()).hexdigest()}.npz"
        if not path.is_file():
            outputs = self._require().run(tensor)
            with library("file system", path):
                np.savez(path, **outputs)  # type: ignore[arg-type]  # numpy's own keyword is no array
            return outputs
        with np.load(path, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}

    def kernels(self) -> tuple[Kernel, ...]:
        """As the runner's; see `Runner`."""
        return self._require().kernels()

    def profile(self, tensor: Tensor, runs: int) -> Profile:
        """As the runner's; see `Runner`."""
        return self._require().profile(tensor, runs)

    def close(self) -> None:
        """Close the runner where it was opened; what it gave stays."""
        if self._runner is not None:
            self._runner.close()
        self._runner = None

    def _require(self) -> Runner:
        if self._runner is None:
            self._runner = self._open(self._config)
        return self._runner
