"""Codes of exit status 5: a box that a bundle goes to."""

from __future__ import annotations

from vitdeploy.codes.code import Code

CODES: dict[str, Code] = {
    # 50xx: boxes. Each line ends with what the box serves, where that is known
    "VD5001": Code(
        "The box can't be reached: its name, network, host key or login; the message holds the words of ssh.",
        "user@box: can't be reached: ssh: connect to host box port 22: Connection refused; see that `ssh user@box` works",
        "Make `ssh user@box` work without a question: no password (ssh-copy-id), a known host key. Then push again.",
    ),
    "VD5002": Code(
        "The box has no Python that the agent runs with.",
        "user@box: has Python 3.8 as python3; install Python 3.10 or later there, or name it: --python PROGRAM",
        "Install Python 3.10 or later on the box, or name one that is there: --python PROGRAM.",
    ),
    "VD5003": Code(
        "The box does not answer, answers something else, or the connection was lost.",
        "user@box: ended before it had answered: Connection reset by peer; run: vitdeploy status user@box",
        "`vitdeploy status` says what the box serves. A switch that had begun goes on without you, or is taken back; what has "
        "arrived stays there, and the next push goes on with it.",
    ),
    "VD5004": Code(
        "Another push or rollback is at work on the box.",
        "user@box: /home/user/vitdeploy: something else is at work on the box (process 812); the box still serves release 7 of "
        "vit; wait for it to end, and try again",
        "Wait for it to end. One whose sender is gone ends after two minutes.",
    ),
    "VD5005": Code(
        "The box's disk has no room for the release.",
        "user@box: /home/user/vitdeploy: needs 240 MiB on the box, 12 MiB are free; the box still serves release 7 of vit; free "
        "some disk there, or choose another folder with --path",
        "Free some disk on the box, or choose another folder with --path.",
    ),
    "VD5006": Code(
        "The release does not run on the box as it did where it was packed: an engine is missing or crashes, outputs differ, or "
        "it is too slow. Nothing was switched.",
        "user@box: does not run on the box: outputs is 0.4, at most 0.02; the box still serves release 7 of vit; nothing was "
        "switched; mend it, and push again",
        "Mend what is named on the box, or quantize for its engine, and push again: what has arrived is not sent twice.",
    ),
    "VD5007": Code(
        "The release was switched to, and did not stay: the restart or the check of the service failed, or the model does not "
        "run beside it. The box went back by itself.",
        "user@box: release 8 did not stay: the restart (service vit restart) ended with status 1; the box still serves "
        "release 7 of vit; look at the service's own log on the box",
        "Look at the service's log on the box. The old release is current again, and the service was restarted with it.",
    ),
    "VD5008": Code(
        "The folder on the box serves something else: releases of one name follow each other.",
        "user@box: /home/user/vitdeploy is where the box has vit, and this is clip; the box still serves release 7 of vit; "
        "choose another folder with --path",
        "Give every model a folder of its own: --path DIR.",
    ),
    "VD5009": Code(
        "The box's system refused, its folder is not ours or damaged, or what arrived is not what was sent.",
        "user@box: /srv/vit: the folder holds other things; the box serves no release yet; choose another with --path",
        "Read its words: give the user on the box the right to write there, or choose another folder with --path.",
    ),
    "VD5010": Code(
        "The box has no release to go back to, or none yet whose vitdeploy could check a bundle that was brought by other ways.",
        "user@box: /home/user/vitdeploy: there is no release to go back to; the box still serves release 7 of vit; push one",
        "Push a release: the one that is served now stays on the box as the one before.",
    ),
}
