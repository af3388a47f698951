"""What the job does before it starts a query."""

from __future__ import annotations

from pathlib import Path

from afterclick.settings import Settings
from streaming.queries import set_aside_log


def test_a_log_without_its_checkpoint_is_set_aside(settings: Settings) -> None:
    log = Path(settings.archive)
    (log / "_spark_metadata").mkdir(parents=True)
    (log / "kept.parquet").touch()
    set_aside_log(settings)
    assert not log.exists()
    (aside,) = log.parent.glob("log.*")
    assert (aside / "kept.parquet").exists()


def test_a_log_that_was_never_begun_is_left_alone(settings: Settings) -> None:
    set_aside_log(settings)
    assert not list(Path(settings.archive).parent.glob("log.*"))
