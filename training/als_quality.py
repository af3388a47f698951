"""How good ALS factors are on a time split: full ranking for known users and with a live event, and RMSE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afterclick.model import Model
from training import baselines
from training.als import AlsConfig, Factors
from training.evaluation import contestants, metrics
from training.evaluation.compare import answer
from training.evaluation.protocols import Queries, Split, queries, sample
from training.interactions import Interactions

PROTOCOLS = ("returning", "live")


@dataclass(frozen=True)
class Exam:
    """The same questions for every setting and engine."""

    split: Split
    known: Interactions
    """What is fitted: users with two interactions or more, items that are ranked."""
    asked: dict[str, Queries]
    seed: int

    @classmethod
    def of(cls, split: Split, most: int, seed: int) -> Exam:
        """At most `most` questions of each protocol."""
        known = split.train.where(split.eligible[split.train.item])
        known = known.where(known.user_counts()[known.user] >= 2)
        return cls(
            split, known, {p: sample(queries(split, p), most, seed) for p in PROTOCOLS}, seed
        )

    def metrics(self, factors: Factors, config: AlsConfig) -> dict[str, float]:
        """protocol.metric → mean over users; `ndcg@10`: that of both protocols; `rmse`: of preferences."""
        contestant = {"als": contestants.als(model_of(self.split.train, factors, config))}
        found = {"rmse": self._rmse(factors)}
        for protocol, asked in self.asked.items():
            lists = answer(self.split, contestant, asked, self.seed).lists["als"]
            hits, one = metrics.hits_of(lists, asked.target), np.ones(len(asked), np.int32)
            found[f"{protocol}.ndcg@10"] = _mean(metrics.ndcg(hits, one, 10))
            found[f"{protocol}.ndcg@20"] = _mean(metrics.ndcg(hits, one, 20))
            found[f"{protocol}.precision@10"] = _mean(metrics.precision(hits, one, 10))
            found[f"{protocol}.hr@10"] = _mean(metrics.hit_rate(hits, one, 10))
        return {**found, "ndcg@10": float(np.mean([found[f"{p}.ndcg@10"] for p in PROTOCOLS]))}

    def _rmse(self, factors: Factors) -> float:
        """Of the predicted preference for what came, against 1 (Hu, Koren, Volinsky, eq. 2)."""
        asked = self.asked["returning"]
        predicted = (factors.users[asked.user] * factors.items[asked.target]).sum(axis=1)
        return float(np.sqrt(np.mean((1.0 - predicted) ** 2))) if len(asked) else 0.0


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0


def model_of(
    rows: Interactions,
    factors: Factors,
    config: AlsConfig,
    near: tuple[NDArray[np.int32], NDArray[np.float32]] | None = None,
) -> Model:
    """A model of ALS, popularity and the neighbours given, without anything else."""
    n = len(rows.item_ids)
    nothing = np.full((n, 1), -1, np.int32), np.zeros((n, 1), np.float32)
    return Model(
        "als",
        rows.item_ids,
        baselines.popularity(rows),
        baselines.first_seen(rows),
        *(near or nothing),
        *nothing,
        factors.items,
        als_alpha=config.alpha,
        als_reg=config.reg,
    )
