"""Folders below TMPDIR go with their process."""

import os
import tempfile

from vitdeploy import files
from vitdeploy.files import leases


def test_a_sweep_takes_the_leases_of_the_dead_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "vitdeploy-models").mkdir()  # a user's own
    (tmp_path / "vitdeploy-crash-1.txt").touch()
    (tmp_path / "vitdeploy-link").symlink_to("elsewhere/vitdeploy-dead")
    for folder in (tmp_path / "vitdeploy-dead", tmp_path / "elsewhere" / "vitdeploy-dead"):
        (folder / "deep").mkdir(parents=True)
        (folder / ".lock").touch()
        (folder / "deep" / "log").touch()
    kept = {path.name for path in tmp_path.iterdir()} - {"vitdeploy-dead"}
    descriptors = os.listdir("/dev/fd")
    with files.temporary_folder() as first, files.temporary_folder() as second:
        (first / "deep").mkdir()
        (first / "link").symlink_to(tmp_path / "elsewhere")
        assert {path.name for path in tmp_path.iterdir()} == {*kept, first.name, second.name}
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert os.listdir("/dev/fd") == descriptors
    assert (tmp_path / "elsewhere" / "vitdeploy-dead" / "deep" / "log").exists()


def test_a_sweep_while_a_folder_is_just_being_made_costs_another_try(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mkdtemp, met = tempfile.mkdtemp, []

    def meanwhile(**names: object) -> str:
        place = mkdtemp(**names)
        if not met:
            met.append(place)
            leases.sweep_leases()  # another process begins
        return place

    monkeypatch.setattr(tempfile, "mkdtemp", meanwhile)
    with files.temporary_folder() as folder:
        assert (folder / ".lock").exists()
        assert os.listdir(tmp_path) == [folder.name]


def test_what_was_killed_before_it_had_its_name_is_swept(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in (".vitdeploy-abcdefgh", ".vitdeploy-bcdefghi", ".vitdeploy-of-somebody"):
        (tmp_path / name).mkdir()
    (tmp_path / ".vitdeploy-bcdefghi" / ".lock").touch()
    leases.sweep_leases()
    assert os.listdir(tmp_path) == [".vitdeploy-of-somebody"]
