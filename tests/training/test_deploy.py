"""The step `deploy`: its own checks, and its records."""

from __future__ import annotations

import numpy as np
import pytest

from afterclick.errors import BadArtifact
from afterclick.model import Model
from afterclick.settings import Settings
from tests.scoring.examples import a_model
from tests.training.challengers import add_challenger, add_champion, an_artifact
from training import publish
from training.gate import Refused
from training.mlflow_registry import MlflowRegistry
from training.pipeline import Pipeline
from training.workspace import Anchor, LastTraining


def champion_version(settings: Settings) -> str | None:
    champion = publish.champion(settings.kafka)
    return champion.version if champion else None


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (a_model(20, factors=np.zeros((20, 4), np.float32)), "every ALS factor is zero"),
        (a_model(9), "only 9 items, the champion has 20"),
    ],
)
def test_a_model_that_fails_its_checks_is_not_published_though_its_evaluation_passed(
    settings: Settings, model: Model, reason: str
) -> None:
    add_champion(settings, "old", a_model(20))
    run = add_challenger(settings, "new", model)
    with pytest.raises(Refused, match=reason):
        Pipeline(settings).deploy()
    assert champion_version(settings) == "old"
    # the same log would give the same model: it does not make another training due
    assert LastTraining.read(settings.home) == LastTraining(
        version="new", positions=run.lineage["positions"]
    )


def test_a_model_with_nan_is_not_published(settings: Settings) -> None:
    add_champion(settings, "old", a_model(20))
    add_challenger(settings, "new", a_model(20, factors=np.full((20, 4), np.nan, np.float32)))
    with pytest.raises(BadArtifact, match="NaN"):
        Pipeline(settings).deploy()
    assert champion_version(settings) == "old"


def test_a_sound_model_is_published(settings: Settings) -> None:
    add_champion(settings, "old", a_model(20))
    add_challenger(settings, "new", a_model(10))
    assert Pipeline(settings).deploy().version == "new"
    assert champion_version(settings) == "new"


def test_a_challenger_is_published_or_kept_out_by_its_evaluation(settings: Settings) -> None:
    add_champion(settings, "old")
    reason = "too few questions"
    add_challenger(settings, "kept", passed=False, verdict="undecided", reason=reason)
    with pytest.raises(Refused, match="kept is not published: too few questions"):
        Pipeline(settings).deploy()
    assert (champion_version(settings), Anchor.read(settings.home)) == ("old", None)
    add_challenger(settings, "new", verdict="undecided", new_anchor=True)
    Pipeline(settings).deploy()
    assert champion_version(settings) == "new"
    add_challenger(settings, "newer")
    Pipeline(settings).deploy()
    assert champion_version(settings) == "newer"
    assert Anchor.read(settings.home) == Anchor(version="new")


def test_a_champion_that_a_killed_deploy_did_not_register_becomes_previous(
    settings: Settings,
) -> None:
    add_champion(settings, "oldest")
    add_champion(settings, "old")
    publish.announce(settings.kafka, an_artifact(settings.artifacts, "new"))
    assert MlflowRegistry(settings).find("new") is None
    add_challenger(settings, "newer")
    Pipeline(settings).deploy()
    models = MlflowRegistry(settings).models()
    aliases = {alias: model.version for model in models for alias in model.aliases}
    assert aliases == {"champion": "newer", "previous": "new"}
