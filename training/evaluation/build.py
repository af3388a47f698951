"""Fit the models of an evaluation on the rows before its cut, and learn the blend on earlier cuts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.model import Model
from afterclick.quarantine import QuarantineLimits
from training import baselines, content, ranker, two_tower
from training.als import AlsConfig, Factors
from training.baselines import NeighbourConfig
from training.content import Catalogue
from training.evaluation import ncf
from training.evaluation.contestants import Fitted
from training.evaluation.protocols import Split
from training.interactions import Interactions
from training.ranker import Blend, RankerConfig
from training.tower_config import TowerConfig

Factorise = Callable[[Interactions, AlsConfig], Factors]
"""ALS by one engine or the other: training.als.fit with a session, or training.implicit_als.fit."""


@dataclass(frozen=True)
class Recipe:
    """Everything a model is made with."""

    factorise: Factorise
    als: AlsConfig
    neighbours: NeighbourConfig = field(default_factory=NeighbourConfig)
    towers: TowerConfig = field(default_factory=TowerConfig)
    ranker: RankerConfig = field(default_factory=RankerConfig)
    content: str = "tfidf"
    """How titles and categories are embedded."""
    least: int = 5
    bounds: QuarantineLimits = field(default_factory=QuarantineLimits)

    def parameters(self) -> dict[str, Any]:
        """Every knob, as it is used."""
        knobs = asdict(self)
        del knobs["factorise"]
        return {**knobs, "ncf": {"decay": ncf.DECAY, "epochs": ncf.EPOCHS}}


def model(rows: Interactions, described: NDArray[np.float32] | None, recipe: Recipe) -> Model:
    """A model of all items of `rows`; those with too few interactions have neither factors nor neighbours."""
    rows = baselines.unpushed(rows, recipe.bounds)
    known = rows.where((rows.item_counts() >= recipe.least)[rows.item])
    paired = known.where(known.user_counts()[known.user] >= 2)
    return Model(
        version="evaluation",
        item_ids=rows.item_ids,
        popularity=baselines.popularity(rows),
        first_seen_ms=baselines.first_seen(rows),
        factors=recipe.factorise(paired, recipe.als).items if len(paired) else None,
        content=described,
        als_alpha=recipe.als.alpha,
        als_reg=recipe.als.reg,
        towers=two_tower.fit(paired, recipe.towers, described) if len(paired) else None,
        **baselines.neighbour_arrays(known, recipe.neighbours),
    )


def fit(split: Split, catalogue: Catalogue, recipe: Recipe) -> tuple[Fitted, Blend]:
    """Every model as of the cut, and a blend learned on earlier cuts. Nothing is seen of what comes after."""
    rows = split.rows
    described = content.embed(content.texts_of(rows.item_ids.tolist(), catalogue), recipe.content)
    past = rows.before(split.cut_ms)
    blend = ranker.train(
        past,
        lambda before: model(before, described, recipe),
        recipe.ranker,
        split.trusted[rows.time_ms < split.cut_ms],
    )
    fitted = Fitted(
        model=model(split.train, described, recipe),
        ranker=blend.text,
        eligible=split.eligible,
        ncf=ncf.fit(split.train, recipe.least, recipe.als.seed),
    )
    return fitted, blend
