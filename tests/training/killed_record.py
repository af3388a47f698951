"""Deploy again and again, killed (SIGKILL) before a later write to MLflow each time. A process of its own.

Prints one JSON line per try: how it ended, the champion, the aliases as they were left, those that the next
command finds. It forks, so that Python imports once; nothing here starts a thread before a fork.
"""

from __future__ import annotations

import os
import shutil
import signal

import orjson
from sqlalchemy import Engine, event

from afterclick.settings import Settings
from tests.training.killed_deploy import forked
from training import publish
from training.mlflow_registry import MlflowRegistry
from training.pipeline import Pipeline

OLD, NEW = "old", "new"


def main() -> None:
    """Try until it is through."""
    settings = Settings()
    known = settings.home / "mlflow.db"
    shutil.copyfile(known, settings.home / "before.db")
    for place in range(1, 1000):
        shutil.rmtree(settings.artifacts / NEW, ignore_errors=True)
        for left in settings.home.glob("mlflow.db*"):
            left.unlink()
        shutil.copyfile(settings.home / "before.db", known)
        if forked(publish.announce, settings.kafka, settings.artifacts / OLD):
            raise SystemExit("the old champion could not be announced")
        killed = forked(_killed_at, place, settings)
        if forked(_tell, killed, settings):
            raise SystemExit("the look at what is left failed")
        if not killed:
            return


def _killed_at(place: int, settings: Settings) -> None:
    """Deploy, and kill this process before its `place`-th write to MLflow."""
    left = place

    def hook(*given: object) -> None:
        nonlocal left
        if str(given[2]).startswith(("INSERT", "UPDATE", "DELETE")):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", hook)
    Pipeline(settings).deploy()


def _tell(ended: int, settings: Settings) -> None:
    champion = publish.champion(settings.kafka)
    registry = MlflowRegistry(settings)
    left = {alias: entry.version for entry in registry.entries() for alias in entry.aliases}
    found = {alias: registry.get(alias).version for alias in ("champion", "previous")}
    told = {
        "ended": ended,
        "champion": champion.version if champion else None,
        "left": left,
        "found": found,
    }
    print(orjson.dumps(told).decode(), flush=True)


if __name__ == "__main__":
    main()
