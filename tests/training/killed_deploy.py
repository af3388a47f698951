"""Publish again and again, killed (SIGKILL) at a later file operation each time. A process of its own.

Prints one JSON line per try: what was tried, how it ended, the champion, which versions are whole, which not.
First the control, then the real thing.
It forks, so that Python imports once; nothing here starts a thread before a fork.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable

import orjson

from afterclick import artifact
from afterclick.errors import BadArtifact
from afterclick.settings import Settings
from training import publish
from training.challenger import copy_model

NEW = "new"
STEP = 4
"""Every so manieth file operation is one to be killed at."""
_KINDS = {"open", "os.rename", "os.mkdir", "shutil.copyfile"}


def deploy(settings: Settings) -> None:
    """What the pipeline's last step does before it tells the registry."""
    folder = copy_model(settings.home / NEW / "model", settings.artifacts, NEW, {})
    publish.announce(settings.kafka, folder)


def copy_in_place(settings: Settings) -> None:
    """The control: what a publishing without staging and rename would do."""
    shutil.copytree(settings.home / NEW / "model", settings.artifacts / NEW, dirs_exist_ok=True)


def main(what: Callable[[Settings], None]) -> None:
    """Try until it is through."""
    settings = Settings()
    for place in range(1, 1000, STEP):
        shutil.rmtree(settings.artifacts / NEW, ignore_errors=True)
        killed = forked(_killed_at, place, what, settings)
        if forked(_tell, what.__name__, killed, settings):
            raise SystemExit("the look at what is left failed")
        if not killed:
            return


def forked(act: Callable[..., None], *given: object) -> int:
    """Run it in a fork; the signal that ended it as a negative number, or its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        act(*given)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def _killed_at(place: int, what: Callable[[Settings], None], settings: Settings) -> None:
    """Do it, and kill this process at its `place`-th operation on the artifacts."""
    watched, left = str(settings.artifacts), place

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        if event in _KINDS and any(str(arg).startswith(watched) for arg in args):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    what(settings)


def _tell(what: str, ended: int, settings: Settings) -> None:
    champion = publish.champion(settings.kafka)
    whole, broken = [], []
    for folder in sorted(p for p in settings.artifacts.iterdir() if not p.name.startswith(".")):
        try:
            artifact.verify(folder, artifact.read_manifest(folder))
            whole.append(folder.name)
        except BadArtifact:
            broken.append(folder.name)
    version = champion.version if champion else None
    told = {"what": what, "ended": ended, "champion": version, "whole": whole, "broken": broken}
    print(orjson.dumps(told).decode(), flush=True)


if __name__ == "__main__":
    main(copy_in_place)
    main(deploy)
