"""Whether a recipe may run: one that imports code needs a caller who names the same code.

A recipe is a file that can come from anywhere, so reading it never makes it a program.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from vitdeploy.errors import TrustError, UsageError
from vitdeploy.recipe import Recipe


def load_permitted(path: Path, module: str | None = None) -> Recipe:
    """Read a recipe that is about to be run.

    Args:
        path: The recipe's file.
        module: The code that may be imported and run, as `ModelConfig.source` names it, relative to the current folder.

    Raises:
        TrustError: VD7009, the recipe would run code that was not named, or that of a pickle.
        UsageError: VD2010, code was named, and the recipe runs none; and as `Recipe.load`.
        InputError: As `Recipe.load`.
    """
    recipe = Recipe.load(path)
    source = recipe.model.source
    if recipe.model.module and (module is None or locate_code(module) != locate_code(source)):
        line = f"vitdeploy build {shlex.quote(str(path))} --module {shlex.quote(source)}"
        raise TrustError("VD7009", f"would import and run {source}", file=path, fix=f"read that code, then name it too: {line}")
    if recipe.model.trust_pickle is not None:
        fix = "export that checkpoint with --trust-pickle, and let the recipe name what came out"
        raise TrustError("VD7009", "would run the code in a pickle, which no recipe can allow", file=path, fix=fix)
    if module is not None and not recipe.model.module:
        raise UsageError("VD2010", f"imports no code, but --module {module} was given", file=path, fix="leave it out")
    return recipe


def locate_code(source: str) -> str:
    """A reference to code with the whole path of its file; one to a package as it is."""
    file, _, name = source.rpartition(":")
    return f"{Path(file).resolve()}:{name}" if file.endswith(".py") else source
