"""A process that publishes repeatedly, killed (SIGKILL) at a later file operation each time.

Prints one JSON line per try: what was tried, its exit code, the champion, the valid and the damaged
versions. First the control, then the real code. It forks, so that Python imports once; nothing here
starts a thread before a fork.
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
"""The process is killed at every fourth file operation."""
_KINDS = {"open", "os.rename", "os.mkdir", "shutil.copyfile"}


def deploy(settings: Settings) -> None:
    """What the pipeline's last step does before it writes to MLflow."""
    folder = copy_model(settings.home / NEW / "model", settings.artifacts, NEW, {})
    publish.announce(settings.kafka, folder)


def copy_in_place(settings: Settings) -> None:
    """The control: publish without staging and rename."""
    shutil.copytree(settings.home / NEW / "model", settings.artifacts / NEW, dirs_exist_ok=True)


def main(action: Callable[[Settings], None]) -> None:
    """Retry until it succeeds."""
    settings = Settings()
    for operation in range(1, 1000, STEP):
        shutil.rmtree(settings.artifacts / NEW, ignore_errors=True)
        exit_code = forked(_killed_at, operation, action, settings)
        if forked(_print_state, action.__name__, exit_code, settings):
            raise SystemExit("cannot read the state after the kill")
        if not exit_code:
            return


def forked(act: Callable[..., object], *args: object) -> int:
    """Run it in a fork; the signal that ended it as a negative number, or its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        act(*args)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def _killed_at(operation: int, action: Callable[[Settings], None], settings: Settings) -> None:
    """Run the action and kill this process at its n-th operation on the artifacts."""
    folder, remaining = str(settings.artifacts), operation

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal remaining
        if event in _KINDS and any(str(arg).startswith(folder) for arg in args):
            remaining -= 1
            if not remaining:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    action(settings)


def _print_state(action: str, exit_code: int, settings: Settings) -> None:
    champion = publish.champion(settings.kafka)
    valid, damaged = [], []
    for folder in sorted(p for p in settings.artifacts.iterdir() if not p.name.startswith(".")):
        try:
            artifact.verify(folder, artifact.read_manifest(folder))
            valid.append(folder.name)
        except BadArtifact:
            damaged.append(folder.name)
    state = {
        "action": action,
        "exit_code": exit_code,
        "champion": champion.version if champion else None,
        "valid": valid,
        "damaged": damaged,
    }
    print(orjson.dumps(state).decode(), flush=True)


if __name__ == "__main__":
    main(copy_in_place)
    main(deploy)
