"""`keygen`: two files that fit."""

import json

from vitdeploy.bundle import signature
from vitdeploy.cli.commands import main


def test_the_command_line(tmp_path, capsys):
    assert main(["keygen", "-o", str(tmp_path / "key"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["key"] == signature.read_key(tmp_path / "key.pub").fingerprint
    signed = signature.sign({"a": "00" * 32}, "a", tmp_path / "key")
    assert signed.key == record["key"]
    assert main(["keygen", "-o", str(tmp_path / "key")]) == 2
