"""How a box is reached, and what is said when something else than the agent answers."""

from __future__ import annotations

import sys

import pytest

from tests.fleet.boxes import make_place
from vitdeploy.errors import DeviceError, UsageError
from vitdeploy.fleet import box, channel
from vitdeploy.fleet.box import Connection, open_box, write_command
from vitdeploy.verbs.surveyor import status


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("user@box", ["--", "user@box"]),
        ("box.example.org:2222", ["-p", "2222", "--", "box.example.org"]),
        ("user@[fe80::1%eth0]:22", ["-p", "22", "--", "user@fe80::1%eth0"]),
    ],
)
def test_addresses(name, there):
    command = write_command(name, Connection(ssh="ssh -F 'my config'"))
    assert command[:3] == ["ssh", "-F", "my config"]
    assert command[-1 - len(there) : -1] == there
    assert "BatchMode=yes" in command


@pytest.mark.parametrize("name", ["", "-oProxyCommand=x", "a b", "user@box:port", "user@box;reboot", "$(x)@box", "box:1:2"])
def test_what_is_no_address(name):
    with pytest.raises(UsageError, match="is no address of a box") as caught:
        write_command(name, Connection())
    assert caught.value.code == "VD2003"


@pytest.mark.parametrize("python", ["python3; reboot", "$(x)", "", "a b", "'"])
def test_a_program_is_no_shell_script(python):
    with pytest.raises(UsageError, match="--python"):
        Connection(python=python)


def test_a_path_is_taken_as_it_is(tmp_path):
    place = make_place(tmp_path / "box")
    odd = 'it\'s a $(folder) "of" mine'
    state = status("user@box", Connection(ssh=str(place.ssh), python=sys.executable, path=odd))
    assert state.root == str(place.home / odd)
    assert status("user@box", Connection(ssh=str(place.ssh), python=sys.executable, path="~/x")).root == str(place.home / "x")


def ask(tmp_path, before: str, python: str = sys.executable):
    place = make_place(tmp_path / "box", before)
    return status("user@box", Connection(ssh=str(place.ssh), python=python))


def test_greetings_are_passed_over(tmp_path):
    assert ask(tmp_path, "echo Welcome; echo '{}'; printf 'no line end'; echo; ").current is None


@pytest.mark.parametrize(
    ("before", "code", "words"),
    [
        ("exec yes; ", "VD5003", "answers what no agent answers: 'y'"),
        ("exec head -c 3000000 /dev/zero; ", "VD5003", "answers without end"),
        ("exit 3; ", "VD5002", "can't run the agent with"),
        ("echo no route >&2; exit 255; ", "VD5001", "can't be reached: no route; see that `ssh user@box` works"),
        ("echo 'me: Permission denied (publickey).' >&2; exit 255; ", "VD5001", "ssh-copy-id"),
        ("echo 'Host key verification failed.' >&2; exit 255; ", "VD5001", "log in once by hand"),
        ("printf '\\036{\\\"hello\\\": 99}\\n'; cat >/dev/null; ", "VD5003", "answers what no agent answers"),
        (
            'printf \'\\036{\\"hello\\": 1}\\n\\036{\\"done\\": 7}\\n\'; cat >/dev/null; ',
            "VD5003",
            "answers what no agent answers",
        ),
        ("printf '\\036{\\\"hello\\\": 1}\\nhm\\n'; cat >/dev/null; ", "VD5003", "answers what no agent answers: 'hm'"),
        (
            "printf '\\036{\\\"hello\\\": 1}\\n'; head -c 9999 >/dev/null; echo oops >&2; exit 1; ",
            "VD5003",
            "ended before it had answered: oops",
        ),
        (
            'printf \'\\036{\\"hello\\": 1}\\n\\036{\\"error\\": {\\"code\\": \\"VD9999\\"}}\\n\'; cat >/dev/null; ',
            "VD5003",
            "no agent",
        ),
    ],
)
def test_whatever_else_answers_is_one_line(tmp_path, before, code, words):
    with pytest.raises(DeviceError) as caught:
        ask(tmp_path, before)
    assert (caught.value.code, caught.value.exit_code) == (code, 5)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_box_without_that_python(tmp_path):
    with pytest.raises(DeviceError, match=r"has no python9: .*not found") as caught:
        ask(tmp_path, "", "python9")
    assert caught.value.code == "VD5002"


def test_a_box_that_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(box, "_HELLO_S", 0.3)
    monkeypatch.setattr(channel, "_GRACE_S", 0.1)
    with pytest.raises(DeviceError, match="does not answer"):
        ask(tmp_path, "exec sleep 30; ")


def test_a_box_that_takes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(channel, "STALL_S", 0.3)
    monkeypatch.setattr(channel, "_GRACE_S", 0.1)
    place = make_place(tmp_path / "box", "printf '\\036{\\\"hello\\\": 1}\\n'; exec sleep 30; ")
    with (
        pytest.raises(DeviceError, match=r"has taken nothing for 0\.3 s"),
        open_box("user@box", Connection(ssh=str(place.ssh), python=sys.executable)) as there,
    ):
        there.send(bytes(1 << 20))


def test_an_old_python_is_named(tmp_path):
    with pytest.raises(DeviceError, match=r"has Python 3\.8 as") as caught:
        ask(tmp_path, 'printf \'\\036{\\"old\\": \\"3.8\\"}\\n\'; cat >/dev/null; ')
    assert caught.value.code == "VD5002"
    compile(box._START.format(mark="x", size=1, root=""), "start", "exec", flags=0)
    assert len(box._START) + 200 < box._START_SIZE
