"""A process that deploys repeatedly, killed before a later write to MLflow each time.

Prints one JSON line per try: its exit code, the champion, the aliases after the kill, and the
aliases that the next command reads. It forks, so that Python imports once; no thread starts before
a fork.
"""

from __future__ import annotations

import os
import shutil
import signal

import orjson
from sqlalchemy import Engine, event

from afterclick.settings import Settings
from tests.training.killed_publish import forked
from training import publish
from training.mlflow_registry import MlflowRegistry
from training.pipeline import Pipeline

OLD, NEW = "old", "new"


def main() -> None:
    """Retry until it succeeds."""
    settings = Settings()
    database = settings.home / "mlflow.db"
    shutil.copyfile(database, settings.home / "before.db")
    for write in range(1, 1000):
        shutil.rmtree(settings.artifacts / NEW, ignore_errors=True)
        for file in settings.home.glob("mlflow.db*"):
            file.unlink()
        shutil.copyfile(settings.home / "before.db", database)
        if forked(publish.announce, settings.kafka, settings.artifacts / OLD):
            raise SystemExit("cannot publish the old champion")
        exit_code = forked(_killed_at, write, settings)
        if forked(_print_state, exit_code, settings):
            raise SystemExit("cannot read the state after the kill")
        if not exit_code:
            return


def _killed_at(write: int, settings: Settings) -> None:
    """Deploy and kill this process before its n-th write to MLflow."""
    remaining = write

    def hook(*args: object) -> None:
        nonlocal remaining
        if str(args[2]).startswith(("INSERT", "UPDATE", "DELETE")):
            remaining -= 1
            if not remaining:
                os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", hook)
    Pipeline(settings).deploy()


def _print_state(exit_code: int, settings: Settings) -> None:
    champion = publish.champion(settings.kafka)
    registry = MlflowRegistry(settings)
    after_kill = {alias: model.version for model in registry.models() for alias in model.aliases}
    repaired = {alias: registry.get(alias).version for alias in ("champion", "previous")}
    state = {
        "exit_code": exit_code,
        "champion": champion.version if champion else None,
        "after_kill": after_kill,
        "repaired": repaired,
    }
    print(orjson.dumps(state).decode(), flush=True)


if __name__ == "__main__":
    main()
