"""The record of a training that failed: an MLflow run that says at which step, and why.

writes  mlflow  the candidate's run where it has one, else one of its own: FAILED, with the tags step, reason

Without MLflow the failure is in the log of the process alone, and goes on as it would have.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from afterclick.settings import Settings
from training.workspace import MissingStep

log = structlog.get_logger()


@dataclass
class Attempt:
    """A step that is under way."""

    run_id: str | None = None
    """The candidate's run, once there is one."""


@contextmanager
def recorded(settings: Settings, step: str) -> Iterator[Attempt]:
    """Record the failure of what is done in a `with`, and let it go on. A missing earlier step is none."""
    attempt, began_ms = Attempt(), now_ms()
    try:
        yield attempt
    except MissingStep:
        raise
    except Exception as error:
        record(settings, step, f"{type(error).__name__}: {error}", began_ms, attempt.run_id)
        raise


def record(
    settings: Settings, step: str, reason: str, began_ms: int, run_id: str | None = None
) -> None:
    """Write it to MLflow; where that fails too, to the log."""
    try:
        from training.mlflow_registry import MlflowRegistry  # MLflow takes seconds to import

        registry = MlflowRegistry(settings)
        if run_id is None:
            knobs = settings.training.model_dump(
                mode="json", exclude={"master", "memory", "mlflow_uri"}
            )
            run_id = registry.start(f"failed {step}", knobs, {"kind": "failed"}, began_ms)
        registry.fail(run_id, step, reason)
    except Exception:  # whatever MLflow raises: what is told of is the training's failure
        log.exception("MLflow took no record of a failed training", step=step, reason=reason)


def now_ms() -> int:
    return int(time.time() * 1000)
