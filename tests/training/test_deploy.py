"""The last step by itself: what it refuses whatever the verdict said."""

from __future__ import annotations

import numpy as np
import pytest

from afterclick.errors import BadArtifact
from afterclick.model import Model
from afterclick.settings import Settings
from tests.scoring.examples import a_model
from tests.training.candidates import an_artifact, candidate, champion
from training import publish
from training.gate import Refused
from training.mlflow_registry import MlflowRegistry
from training.pipeline import Pipeline
from training.trained import Trained


def served(settings: Settings) -> str | None:
    champion = publish.champion(settings.kafka)
    return champion.version if champion else None


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (a_model(20, factors=np.zeros((20, 4), np.float32)), "every ALS factor is zero"),
        (a_model(9), "only 9 items, the champion has 20"),
    ],
)
def test_an_unsound_model_is_not_published_though_its_verdict_allows_it(
    settings: Settings, model: Model, reason: str
) -> None:
    champion(settings, "old", a_model(20))
    facts = candidate(settings, "new", model)
    with pytest.raises(Refused, match=reason):
        Pipeline(settings).deploy()
    assert served(settings) == "old"
    assert Trained.read(settings.home) == Trained.of(
        facts
    )  # the same log would give the same model


def test_a_model_with_numbers_that_are_none_is_not_published(settings: Settings) -> None:
    champion(settings, "old", a_model(20))
    candidate(settings, "new", a_model(20, factors=np.full((20, 4), np.nan, np.float32)))
    with pytest.raises(BadArtifact, match="NaN"):
        Pipeline(settings).deploy()
    assert served(settings) == "old"


def test_a_sound_model_is_published(settings: Settings) -> None:
    champion(settings, "old", a_model(20))
    candidate(settings, "new", a_model(10))
    assert Pipeline(settings).deploy().version == "new"
    assert served(settings) == "new"


def test_a_champion_that_a_killed_deploy_never_registered_is_what_one_goes_back_to(
    settings: Settings,
) -> None:
    champion(settings, "oldest")
    champion(settings, "old")
    publish.announce(settings.kafka, an_artifact(settings.artifacts, "new"))
    assert MlflowRegistry(settings).find("new") is None
    candidate(settings, "newer")
    Pipeline(settings).deploy()
    aliases = {
        alias: entry.version
        for entry in MlflowRegistry(settings).entries()
        for alias in entry.aliases
    }
    assert aliases == {"champion": "newer", "previous": "new"}
