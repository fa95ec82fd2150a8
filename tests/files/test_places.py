"""Where files of this user lie."""

from pathlib import Path

import pytest

from vitdeploy import files
from vitdeploy.errors import MachineError


@pytest.mark.parametrize(
    ("own", "shared", "folder"),
    [
        ("/a", "/b", "/a"),
        ("", "/b", "/b/vitdeploy"),
        (None, "", "/home/me/.cache/vitdeploy"),
        (None, "relative", "/home/me/.cache/vitdeploy"),
        (None, None, "/home/me/.cache/vitdeploy"),
    ],
)
def test_where_the_cache_lies(monkeypatch, own, shared, folder) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in (("VITDEPLOY_CACHE", own), ("XDG_CACHE_HOME", shared)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert files.cache_folder() == Path(folder)


def test_a_user_without_a_home_is_told_so(monkeypatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("VITDEPLOY_CACHE", "/a")
    assert files.cache_folder() == Path("/a")
    monkeypatch.delenv("VITDEPLOY_CACHE")
    with pytest.raises(MachineError, match="set HOME or XDG_CACHE_HOME") as caught:
        files.cache_folder()
    assert caught.value.code == "VD4012"
