"""What a push does on a box: what is sent, what is refused, and that the old release is served whatever goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time

import pytest

from tests.fleet.boxes import CRASH, FAIL, ONLY_BEFORE, PASS, STALL, make_release
from vitdeploy.errors import DeviceError, TrustError
from vitdeploy.fleet import errands
from vitdeploy.fleet.errands import ServiceConfig
from vitdeploy.verbs.pusher import PushConfig, push
from vitdeploy.verbs.returner import RollbackConfig, rollback
from vitdeploy.verbs.signer import keygen
from vitdeploy.verbs.surveyor import status


def test_a_release_is_served_with_all_that_reads_it(send, releases, place, shipment):
    shipped = send(releases[7])
    assert shipped.outcome == "active"
    assert shipped.state.current.release == 7
    assert shipped.state.current.id == json.loads((place.root / "current/release.json").read_bytes())["id"]
    assert shipped.state.key == shipment.packed.key
    assert shipped.sent == shipped.size > 100_000
    place.require_whole(shipped.state.current.folder)
    assert (place.root / "current/bundle/manifest.json").read_bytes() == (releases[7] / "manifest.json").read_bytes()


def test_only_what_the_box_lacks_is_sent(send, releases, place):
    send(releases[7])
    assert send(releases[8]).sent == 0  # manifest and signature go with the request; all else is there
    again = send(releases[8])
    assert (again.outcome, again.sent, again.state.previous.release) == ("unchanged", 0, 7)
    place.require_whole(again.state.current.folder)


@pytest.mark.slow
def test_three_releases_stay_and_the_one_before_always(send, releases):
    for number in (4, 5, 6, 7):
        shipped = send(releases[number])
    assert [folder.partition("-")[0] for folder in shipped.state.releases] == ["5", "6", "7"]
    assert shipped.state.previous.release == 6


def test_a_file_that_rotted_on_the_box_is_sent_again(send, releases, place):
    send(releases[7])
    model = next((place.root / "current/bundle/models").rglob("model.onnx"))
    content = bytearray(model.read_bytes())
    content[100] ^= 1
    model.write_bytes(content)
    shipped = send(releases[8])
    assert shipped.sent == len(content)
    place.require_whole(shipped.state.current.folder)


def test_a_push_that_was_cut_off_goes_on_at_its_byte(send, releases, place, monkeypatch):
    model = max(releases[7].rglob("*.onnx"), key=lambda path: path.stat().st_size)
    size = model.stat().st_size
    read = errands.Bundle.read_parts

    def cut(self, name, start=0):
        for part in read(self, name, start):
            if name.endswith(model.name) and len(part) == size:
                yield part[: size // 3]
                raise KeyboardInterrupt
            yield part

    with monkeypatch.context() as patch:
        patch.setattr(errands.Bundle, "read_parts", cut)
        patch.setattr(errands.Bundle, "check", lambda self, key: None)
        with pytest.raises(KeyboardInterrupt):
            send(releases[7])
    assert place.read_current() is None
    shipped = send(releases[7])
    assert 0 < shipped.sent < shipped.size
    assert any("of an earlier push were there already" in note for note in shipped.notes)
    place.require_whole(shipped.state.current.folder)


def test_what_arrives_changed_is_thrown_away(send, releases, place, monkeypatch):
    send(releases[6])
    shutil.rmtree(place.root / "releases" / place.read_current() / "bundle/models")
    with monkeypatch.context() as patch:
        patch.setattr(errands.Bundle, "read_parts", damage)
        patch.setattr(errands.Bundle, "check", lambda self, key: None)
        with pytest.raises(DeviceError, match=r"other bytes than announced.*still serves release 6 of tiny") as caught:
            send(releases[7])
    assert caught.value.code == "VD5009"
    assert not any((place.root / "incoming").iterdir())
    assert send(releases[7]).outcome == "active"


def damage(bundle, name, start=0, read=errands.Bundle.read_parts):
    """A bundle's file; of models one byte is another."""
    for part in read(bundle, name, start):
        yield bytes([part[0] ^ 1]) + part[1:] if name.startswith("models/") else part


@pytest.mark.parametrize(
    ("health", "words"),
    [
        (FAIL, "outputs is 0.4, at most 0.02"),
        (CRASH, "was ended by SIGSEGV"),
        ("raise ImportError('no onnxruntime here')", "it said last: ImportError: no onnxruntime here"),
    ],
)
def test_what_does_not_run_there_is_not_switched_to(send, releases, place, health, words):
    old = send(releases[7]).state.current.folder
    with pytest.raises(DeviceError) as caught:
        send(releases[8], health)
    assert caught.value.code == "VD5006"
    assert words in str(caught.value)
    assert "the box still serves release 7 of tiny" in str(caught.value)
    place.require_whole(old)
    assert send(releases[8]).state.current.release == 8


def test_a_check_that_hangs_is_killed(send, releases, place):
    start = time.monotonic()
    with pytest.raises(DeviceError, match=r"took longer than 0\.5 s; the box serves no release yet"):
        send(releases[7], STALL, service=ServiceConfig(health_s=0.5))
    assert time.monotonic() - start < 30
    assert place.read_current() is None


def test_a_mended_box_gets_nothing_sent_twice(send, releases):
    with pytest.raises(DeviceError):
        send(releases[7], "import sys; exec(open('/nonexistent').read())")
    assert send(releases[7], "import sys; exec(open('/nonexistent').read())", dry_run=True).sent == 0


def log_restarts(place) -> str:
    """A restart that writes down what is current."""
    return f"readlink {place.root}/current >> {place.home}/restarts"


def read_restarts(place) -> list[str]:
    path = place.home / "restarts"
    return [line.partition("/")[2].partition("-")[0] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    ("health", "service", "words"),
    [
        (ONLY_BEFORE, {}, "no memory"),
        (PASS, {"check": "exit 3", "ready_s": 1.0}, "the service did not come up: exit 3 still fails after 1 s"),
        pytest.param(PASS, {"check": "sleep 60", "ready_s": 0.5}, "the service did not come up", marks=pytest.mark.slow),
    ],
)
def test_what_fails_after_the_switch_is_taken_back(send, releases, place, health, service, words):
    restart = log_restarts(place)
    old = send(releases[7], service=ServiceConfig(restart=restart)).state.current.folder
    with pytest.raises(DeviceError) as caught:
        send(releases[8], health, service=ServiceConfig(restart=restart, **service))
    assert caught.value.code == "VD5007"
    assert words in str(caught.value)
    assert "the box still serves release 7 of tiny" in str(caught.value)
    place.require_whole(old)
    assert read_restarts(place) == ["7", "8", "7"]
    assert not (place.root / "journal.json").exists()
    assert status("user@box", place.connect()).previous is None
    assert send(releases[8]).state.previous.release == 7


def test_a_restart_that_fails_is_taken_back_too(send, releases, place):
    with pytest.raises(DeviceError, match=r"the restart \(exit 4\) ended with status 4.*the box serves no release yet"):
        send(releases[7], service=ServiceConfig(restart="exit 4"))
    assert place.read_current() is None


def test_a_restart_may_leave_the_service_running(send, releases, place):
    command = f"nohup sleep 30 & echo $! > {place.home}/pid"
    start = time.monotonic()
    assert send(releases[7], service=ServiceConfig(restart=command, check=f"kill -0 $(cat {place.home}/pid)")).outcome == "active"
    assert time.monotonic() - start < 20
    os.kill(int((place.home / "pid").read_text()), 9)


def test_rollback_and_back(send, releases, place):
    send(releases[7])
    send(releases[8])
    config = RollbackConfig(connection=place.connect(), service=ServiceConfig(restart=log_restarts(place)))
    shipped = rollback("user@box", config)
    assert (shipped.outcome, shipped.state.current.release, shipped.state.previous.release) == ("rolled back", 7, 8)
    assert read_restarts(place) == ["7"]
    assert rollback("user@box", config).state.current.release == 8
    place.require_whole(place.read_current())


def test_nothing_to_go_back_to(send, releases, place):
    send(releases[7])
    with pytest.raises(DeviceError, match="no release to go back to; the box still serves release 7 of tiny") as caught:
        rollback("user@box", RollbackConfig(connection=place.connect()))
    assert caught.value.code == "VD5010"


def test_the_first_push_names_a_key_and_later_ones_need_none(releases, place, send, shipment):
    config = PushConfig(connection=place.connect())
    with pytest.raises(TrustError, match="trusts no key yet; the box serves no release yet") as caught:
        push(releases[7], "user@box", config)
    assert caught.value.code == "VD7010"
    send(releases[7])
    assert push(releases[8], "user@box", PushConfig(connection=place.connect(), dry_run=True)).outcome == "planned"


def test_another_key_is_refused_from_then_on(send, releases, place, shipment, tmp_path):
    send(releases[7])
    other = keygen(tmp_path / "other.key")
    theirs = make_release(shipment, 9, tmp_path / "theirs", key=tmp_path / "other.key")
    with pytest.raises(TrustError, match="the box trusts the key") as caught:
        send(theirs, key=tmp_path / "other.key.pub")
    assert caught.value.code == "VD7010"
    with pytest.raises(TrustError, match=r"was not made with this key.*still serves release 7") as caught:
        push(theirs, "user@box", PushConfig(connection=place.connect()))
    assert caught.value.code == "VD7006"
    assert other.key != shipment.packed.key


def test_older_releases_and_others_of_the_same_number(send, releases, place, shipment, tmp_path):
    send(releases[7])
    for bundle in (releases[6], make_release(shipment, 7, tmp_path / "again", note="\n")):
        with pytest.raises(TrustError, match="the box has had release 7; the box still serves release 7") as caught:
            send(bundle)
        assert caught.value.code == "VD7008"
    shipped = send(releases[6], allow_downgrade=True)
    assert shipped.state.current.release == 6
    assert shipped.state.history[-1]["downgrade"] is True
    with pytest.raises(TrustError, match="the box has had release 7"):
        send(releases[5])
    assert send(releases[7]).state.current.release == 7


def test_another_model_needs_another_folder(send, releases, shipment, tmp_path):
    send(releases[7])
    with pytest.raises(DeviceError, match="is where the box has tiny, and this is other") as caught:
        send(make_release(shipment, 1, tmp_path / "other", name="other"))
    assert caught.value.code == "VD5008"


def test_a_dry_run_says_the_bytes_and_changes_nothing(send, releases, place):
    planned = send(releases[7], dry_run=True)
    assert (planned.outcome, planned.sent) == ("planned", planned.size)
    assert not (place.root / "key.pub").exists()
    send(releases[7])
    before = sorted(place.root.rglob("*"))
    assert send(releases[8], dry_run=True).sent == 0
    with pytest.raises(TrustError):
        send(releases[6], dry_run=True)
    assert sorted(place.root.rglob("*")) == before


@pytest.mark.slow
def test_two_pushes_at_once(send, releases, place):
    send(releases[6])
    waiting = ServiceConfig(restart=f"touch {place.home}/begun; sleep 4")
    first: list[object] = []
    thread = threading.Thread(target=lambda: first.append(send(releases[7], service=waiting)))
    thread.start()
    while not (place.home / "begun").exists():
        time.sleep(0.05)
    with pytest.raises(DeviceError, match=r"something else is at work on the box \(process \d+\)") as caught:
        push(releases[8], "user@box", PushConfig(connection=place.connect()))
    assert caught.value.code == "VD5004"
    state = status("user@box", place.connect())  # looking is allowed
    assert (state.unconfirmed, state.current.release) == (True, 7)
    thread.join()
    assert first[0].state.current.release == 7


def test_a_box_that_died_when_its_folder_was_new_is_no_folder_of_others(send, place, shipment, tmp_path):
    place.root.mkdir()  # the first of the agent's steps; the lock is the second, and says that the folder is ours
    (place.root / "lock").touch()
    (place.root / "releases").mkdir()
    assert send(make_release(shipment, 7, tmp_path / "7", slim=True)).outcome == "active"


def test_what_came_of_a_push_that_was_given_up_goes_with_the_next(send, place, shipment, tmp_path):
    send(make_release(shipment, 7, tmp_path / "7", slim=True))
    (place.root / "incoming" / ("0" * 64)).write_bytes(b"half of something")
    assert status("user@box", place.connect()).incoming == {"0" * 64: 17}
    assert send(make_release(shipment, 8, tmp_path / "8", slim=True)).state.incoming == {}


def test_a_folder_of_others_is_left_alone(send, releases, place):
    place.root.mkdir()
    (place.root / "precious").write_text("x")
    with pytest.raises(DeviceError, match="the folder holds other things"):
        send(releases[7])
    assert [path.name for path in place.root.iterdir()] == ["precious"]


def test_a_file_in_the_folder_s_place(send, releases, place):
    place.root.touch()
    with pytest.raises(DeviceError) as caught:
        send(releases[7])
    assert caught.value.code == "VD5009"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk(send, releases, place):
    place.root.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=17m", "none", str(place.root)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        send(releases[6])
        (place.root / "ballast").write_bytes(bytes(900_000))
        with pytest.raises(DeviceError, match=r"are free; the box still serves release 6 of tiny") as caught:
            send(releases[7])
        assert caught.value.code == "VD5005"
    finally:
        subprocess.run(["umount", str(place.root)], check=True)


def test_the_clock_decides_nothing(send, releases, place, tmp_path):
    """A box without a clock wakes up in 1970: what is newer is told by counters."""
    send(releases[7])
    for path in place.root.rglob("*"):
        os.utime(path, (0, 0), follow_symlinks=False)
    assert send(releases[8]).state.current.release == 8
    assert rollback("user@box", RollbackConfig(connection=place.connect())).state.current.release == 7


def test_an_unsigned_bundle_stays_here(send, releases, tmp_path):
    bare = shutil.copytree(releases[7], tmp_path / "bare")
    (bare / "vitdeploy.sig").unlink()
    with pytest.raises(TrustError, match="is not signed") as caught:
        send(bare)
    assert caught.value.code == "VD7006"


def test_a_damaged_record_on_the_box_is_one_line(send, releases, place):
    send(releases[7])
    (place.root / "current/release.json").write_text("{")
    with pytest.raises(DeviceError, match="is damaged; which release the box serves can't be told") as caught:
        send(releases[8])
    assert caught.value.code == "VD5009"


def test_the_agent_that_stays_answers_with_the_standard_library_alone(send, releases, place):
    send(releases[7])
    send(releases[8])
    done = place.run_agent("status")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout[1:])["done"]["current"]["release"] == 8
    assert place.run_agent("rollback").returncode == 0
    assert place.run_agent("recover").returncode == 0
    assert place.read_current().startswith("7-")
    assert (place.run_agent().returncode, place.run_agent("sing").returncode) == (2, 2)
