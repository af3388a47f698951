"""What another policy or model would have earned on the lists that users were shown.

reads   topic     impressions, forgotten, models
        parquet   <home>/etl/<newest version>
        artifact  <home>/holdout_models/<version>, <home>/challengers/<version>/holdout_model

The target makes a list for the user and the moment of each logged list that explored, from what
was known then (`training.query_replay`). A model is asked through its holdout model about lists
after its cut, as by the release gate: it has not seen the reactions. What is estimated, and what is
assumed: `training.evaluation.off_policy_estimators`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from heapq import nsmallest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from afterclick.api import Policy
from afterclick.arrays import Float64Array, Int64Array
from afterclick.artifact import read_manifest
from afterclick.errors import AfterclickError, BadArtifact, BadInput, NotFound
from afterclick.events import VISITOR, Action, ImpressionEvent, stable_id
from afterclick.io.forgotten import read_forgotten
from afterclick.settings import Settings
from training import event_log, logged_lists, publish, workspace
from training.challenger import HOLDOUT_MODELS
from training.config import ReplayConfig
from training.evaluation import off_policy_estimators as estimators
from training.evaluation import scorers
from training.evaluation.holdout import RankedModel
from training.evaluation.measure import FullRanking, Scorer, Scores, answer
from training.evaluation.off_policy_estimators import Estimate, LoggedLists, Weights
from training.event_log import EventLog
from training.gate import MIN_USERS
from training.gate_evaluation import ranked_model
from training.protocols import NOTHING, Queries
from training.query_replay import ReplayedQuery, align

SETTLE_MS = 30 * 60_000
"""A list counts once the log goes on for this long after it: users react within it."""
MAX_SUPPORT = 1.5
"""An estimated support above it is not chance: the propensities are not those of the lists."""
_WITHOUT_MODEL = (Policy.TRENDING, Policy.POPULAR)
_TARGET = "target"


class NoSupport(AfterclickError):
    """The log cannot say what the target would have earned."""

    exit_code = 6


@dataclass(frozen=True)
class OffPolicyRequest:
    """Options of the command line."""

    policy: Policy = Policy.BLEND
    model: str | None = None
    """A version; None: the champion, where the policy needs a model."""
    rewards: tuple[Action, ...] = ()
    """Reactions to an item that count, as 1 together; default: those of the settings."""
    decay: float | None = None
    """Exponent of the position-based model; None: only items at the same rank count."""
    min_support: float = 0.8
    min_ess: float = 100.0
    max_lists: int = 10_000
    """A larger log is sampled."""


@dataclass(frozen=True)
class OffPolicyReport:
    """What a target would have earned: reactions per list."""

    policy: str
    model: str | None
    """The model's version; None: the policy needs none."""
    lists: int
    users: int
    support: float
    """Share of the target's items that the log could have shown, at most 1"""
    logged: Estimate
    """What the logged lists earned."""
    estimates: dict[str, Estimate]
    """Estimator → what the target would have earned"""

    def figures(self) -> dict[str, Any]:
        """The report as JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class TargetModel:
    """A version's holdout model, and the event time from which it has seen nothing."""

    version: str
    ranked: RankedModel
    cut_ms: int


def run(
    settings: Settings, request: OffPolicyRequest, progress: Callable[[str], None]
) -> OffPolicyReport:
    """Estimate what the target would have earned.

    Raises MissingStep before the first ETL, NotFound without the model, NoSupport if the log says
    too little, Unavailable without Kafka.
    """
    _, folder = workspace.latest(settings.home / "etl", "pipeline etl")
    model = _target_model(settings, request)
    log = event_log.load(folder)
    period = (model.cut_ms if model else 0, int(log.time_ms[-1]) - SETTLE_MS)
    shown = _shown(settings, period, request.max_lists)
    log = _with_ids(log, shown, model)
    progress(f"asking the target about {len(shown):,} lists")
    targets = _targets(log, shown, request.policy, model, ReplayConfig.of(settings))
    rewards = request.rewards or settings.stream.reactions
    found = logged_lists.reactions(folder, [e.data.impression_id for e in shown], rewards)
    lists = _arrays(log, shown, found, targets)
    weights = estimators.weigh(lists, request.decay)
    require_support(lists, weights, request)
    return OffPolicyReport(
        policy=str(request.policy),
        model=model.version if model else None,
        lists=len(lists),
        users=lists.users,
        support=min(weights.support, 1.0),
        logged=estimators.logged(lists),
        estimates=estimators.estimates(lists, request.decay),
    )


def require_support(lists: LoggedLists, weights: Weights, request: OffPolicyRequest) -> None:
    """Raises NoSupport, with reason and fix, if the lists say too little about the target."""
    if lists.users < MIN_USERS:
        raise NoSupport(
            f"{lists.users} users have lists with exploration, at least {MIN_USERS} are needed: "
            "let more users explore (option `explore`)"
        )
    more = "let lists explore more (`explore`, uniform sampling)"
    if request.decay is None:
        more += ", or let items at other ranks count (--decay)"
    if weights.support < request.min_support:
        raise NoSupport(
            f"the logged lists could have shown {weights.support:.0%} of the target's items, at "
            f"least {request.min_support:.0%} are needed (--min-support): {more}"
        )
    if weights.support > MAX_SUPPORT:
        raise NoSupport(
            f"the weights add up to {weights.support:.1f} times what they should: the propensities "
            "are not those of the lists; estimate from lists that this installation explored"
        )
    if weights.ess < request.min_ess:
        raise NoSupport(
            f"the effective sample size is {weights.ess:.0f}, at least {request.min_ess:.0f} is "
            f"needed (--min-ess): wait for more lists, or {more}"
        )


def _target_model(settings: Settings, request: OffPolicyRequest) -> TargetModel | None:
    """The model to ask; None if the policy needs none."""
    if request.policy in _WITHOUT_MODEL:
        if request.model is not None:
            raise BadInput(f"--policy {request.policy} needs no --model")
        return None
    version = request.model
    if version in (None, "champion"):
        served = publish.champion(settings.kafka)
        if served is None:
            raise NotFound("no model is served yet: name a version with --model")
        version = served.version
    folders = (
        settings.home / HOLDOUT_MODELS / str(version),
        settings.home / "challengers" / str(version) / "holdout_model",
    )
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise NotFound(
            f"no holdout model of {version!r} in {settings.home}: name a version that was trained "
            "here (`afterclick models ls`)"
        )
    cut_ms = read_manifest(folder).cut_ms
    if cut_ms is None:
        raise BadArtifact(f"the manifest in {folder} has no cut_ms: train the model again")
    return TargetModel(str(version), ranked_model(folder), cut_ms)


def _shown(settings: Settings, period: tuple[int, int], max_lists: int) -> list[ImpressionEvent]:
    """The lists with exploration in a period (ms, both ends included), by time.

    Raises NoSupport if there are none.
    """
    from_ms, until_ms = period
    forgotten = read_forgotten(settings.kafka)
    found = (
        event
        for event in logged_lists.impressions(settings.kafka)
        if from_ms <= event.time_ms <= until_ms
        and event.data.user_id != VISITOR
        and event.time_ms > forgotten.get(event.data.user_id, -1)
        and any(item.propensity < 1.0 for item in event.data.items)
    )
    # a sample by hash: the same one in every run, whatever the order of the partitions
    chosen = nsmallest(max_lists, found, key=lambda event: stable_id(event.data.impression_id))
    if not chosen:
        raise NoSupport(
            "no list of a user in the period of the tables explored: make lists with the option "
            "`explore`, and run `afterclick pipeline etl` half an hour later"
        )
    return sorted(chosen, key=lambda event: (event.time_ms, event.data.impression_id))


def _with_ids(log: EventLog, shown: list[ImpressionEvent], model: TargetModel | None) -> EventLog:
    """The log that also knows the users and items of the lists, and the items of the model."""
    known = set(log.user_ids.tolist())
    users = sorted({event.data.user_id for event in shown} - known)
    items = {item.item_id for event in shown for item in event.data.items}
    items |= set(model.ranked.model.item_ids.tolist()) if model else set()
    user_ids = np.concatenate([log.user_ids, np.array(users, np.str_)])
    return replace(log, user_ids=user_ids).also(sorted(items))


def _targets(
    log: EventLog,
    shown: list[ImpressionEvent],
    policy: Policy,
    model: TargetModel | None,
    known: ReplayConfig,
) -> NDArray[np.int32]:
    """(N, L) the target's list for each moment, of the length of the logged list; -1 pads."""
    index = _index(log.user_ids)
    n = len(shown)
    moments = np.array([event.time_ms for event in shown], np.int64)
    asked = Queries(
        user=np.array([index[event.data.user_id] for event in shown], np.int32),
        targets=np.full((n, 1), NOTHING, np.int32),
        grades=np.zeros((n, 1), np.float32),
        organic=np.zeros(n, bool),
        weight=np.ones(n, np.float32),
        target_ms=moments,
        now_ms=moments,
        live=np.full((n, 1), NOTHING, np.int32),
    )
    lengths = np.array([len(event.data.items) for event in shown])
    scorer = _scorer(log, policy, model, moments)
    ranking = FullRanking(scorer, np.ones(len(log.item_ids), bool), seed=0)
    with threadpool_limits(1, "blas"):  # small matrices: more threads cost more than they save
        lists = answer(log, asked, {_TARGET: ranking}, int(lengths.max()), known).lists[_TARGET]
    return np.where(np.arange(lists.shape[1]) < lengths[:, None], lists, NOTHING).astype(np.int32)


def _scorer(
    log: EventLog, policy: Policy, model: TargetModel | None, moments: Int64Array
) -> Scorer:
    """What orders the target's lists; a user whom a single model does not know gets trends."""
    if model is None:
        return _trending if policy is Policy.TRENDING else _Popularity.of(log, moments)
    aligned = align(model.ranked.model, log.item_ids)
    if policy is Policy.BLEND:
        return scorers.blend(aligned, model.ranked.ranker, np.ones(len(log.item_ids), bool))
    if policy is Policy.ALS:
        return _or_trending(scorers.als(aligned))
    if policy is Policy.TWO_TOWER and aligned.towers is not None:
        return _or_trending(scorers.sequence(aligned, aligned.towers))
    if policy is Policy.NCF and aligned.ncf is not None:
        return _or_trending(scorers.ncf(aligned, aligned.ncf))
    if policy is Policy.CONTENT and aligned.content is not None:
        return _or_trending(scorers.content(aligned, aligned.content))
    raise BadInput(f"--policy {policy}: the model {model.version} has no such part")


def _trending(query: ReplayedQuery) -> Scores:
    return query.trends.trend_score


def _or_trending(scorer: Scorer) -> Scorer:
    def score(query: ReplayedQuery) -> Scores:
        scores = scorer(query)
        return scores if np.any(scores[np.isfinite(scores)]) else _trending(query)

    return score


@dataclass
class _Popularity:
    """Positive events of each item before the moment of a query; queries come in time order."""

    item: NDArray[np.int32]
    time_ms: Int64Array
    moments: Int64Array
    counts: Float64Array
    done: int = 0

    @classmethod
    def of(cls, log: EventLog, moments: Int64Array) -> _Popularity:
        positive = log.weight > 0
        counts = np.zeros(len(log.item_ids))
        return cls(log.item[positive], log.time_ms[positive], moments, counts)

    def __call__(self, query: ReplayedQuery) -> Scores:
        end = int(np.searchsorted(self.time_ms, self.moments[query.row]))
        np.add.at(self.counts, self.item[self.done : end], 1.0)
        self.done = end
        return self.counts


def _arrays(
    log: EventLog,
    shown: list[ImpressionEvent],
    reactions: set[tuple[str, str, str]],
    target: NDArray[np.int32],
) -> LoggedLists:
    """The lists, their rewards and the target's lists as arrays."""
    users, items = _index(log.user_ids), _index(log.item_ids)
    rows = [
        (owner, rank, items[item.item_id], item.propensity, (*key, item.item_id) in reactions)
        for owner, event in enumerate(shown)
        for key in [(event.data.impression_id, event.data.user_id)]
        for rank, item in enumerate(event.data.items)
    ]
    owner, rank, item, propensity, reward = map(np.array, zip(*rows, strict=True))
    return LoggedLists(
        user=np.array([users[event.data.user_id] for event in shown]),
        owner=owner,
        rank=rank,
        item=item.astype(np.int32),
        propensity=propensity,
        reward=reward.astype(np.float64),
        target=target,
    )


def _index(ids: NDArray[np.str_]) -> dict[str, int]:
    return {name: number for number, name in enumerate(ids.tolist())}
