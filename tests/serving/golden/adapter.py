"""The only golden file that uses the product: builds the fixed state and answers one request.

`run` takes a request of `request_specs.py` and returns its answer, both in the golden set's names.
When the product changes its names, change them here only; the frozen answers stay. The tables below
map product names (left) to golden names (right).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import orjson

from afterclick.api import Metric, Policy, SamplingPolicy
from afterclick.errors import NotFound, Unavailable
from afterclick.events import Action, Item
from afterclick.model import Model, TowerArrays, WordVectors
from afterclick.ranking import FormulaRanker
from afterclick.retrieval import exact_search
from afterclick.settings import StreamSettings
from afterclick.signals import STARS, Signals
from afterclick.state import HistoryEntry, LogPosition
from afterclick.tree_ranker import FILE, TreeRanker
from serving.control.experiments import Arm, Assignment, Experiment, ExperimentDraft, Plan
from serving.control.rules import Rule, RuleBook, RuleDraft
from serving.recommender import Recommender, RecommenderConfig
from serving.request import Options, Page, RecommendationRequest, decode_cursor
from serving.response_cache import Recommendation
from serving.routes import queries, recommendations
from serving.service import Service
from serving.state.ann_search import content_search
from serving.state.history import OnlineStore, Rows
from serving.state.item_catalogue import Catalogue
from serving.state.live_trends import PositionWaiters, TrendState
from serving.state.loaded_models import LoadedModel, no_model
from serving.state.snapshot_builder import SnapshotSources, SnapshotStore
from tests.serving.golden import fixed_state
from tests.serving.golden.request_specs import Spec

RANKER = TreeRanker.read(Path(__file__).parent / FILE)
"""60 trees, trained once on feature rows of the fixed state."""

_WEIGHTS = StreamSettings().weights
SIGNALS = Signals(_WEIGHTS, dict.fromkeys(STARS, _WEIGHTS[Action.REVIEW]))
"""As when the answers were frozen: a review weighs the same with any stars."""

Answer = dict[str, Any]
POLICIES = {
    "blend": Policy.BLEND,
    "als": Policy.ALS,
    "towers": Policy.TWO_TOWER,
    "popular": Policy.POPULAR,
    "trending": Policy.TRENDING,
}
SIMILARITY = {"all": "all", "co-purchase": "bought", "content": "content"}
TIERS = {name: name for name in ("personalised", "session", "interests", "trending", "popular")}
SOURCES = {
    name: name
    for name in (
        "same_day", "neighbours", "als", "tower", "content", "trending", "popular", "interests",
    )
}  # fmt: skip
PARTS = {
    name: name
    for name in (
        "model", "history", "trend", "content", "base", "popularity", "rules", "diversity",
        "exploration",
    )
}  # fmt: skip
TO_PART = {golden: product for product, golden in PARTS.items()}


def run(spec: Spec) -> Answer:
    """The answer to a golden request, as JSON."""
    state = _state(spec["snapshot"], spec["rules"])
    return asyncio.run(
        _recommended(state, spec) if spec["list"] == "recommend" else _listed(state, spec)
    )


# State


def _trends(with_trends: bool, approved: frozenset[str]) -> TrendState:
    trends = TrendState()
    trends.positions, trends.approved = {"feedback/0": 41}, approved
    if with_trends:
        given = fixed_state.trends()
        trends.table.merge_many(given["ids"], given["times_ms"], given["sums"], given["counts"])
    return trends


class _Store:
    """Histories as Redis returns them."""

    def __init__(self, down: bool) -> None:
        self._down = down

    async def rows(self, user_id: str, newest: int | None = None) -> Rows:
        if self._down:
            raise Unavailable("the online store is down")
        return _rows(user_id)


def _rows(user_id: str) -> Rows:
    rows: Rows = []
    for at, event in enumerate(fixed_state.histories().get(user_id, ())):
        time_ms = fixed_state.NOW_MS - round(event["hours_ago"] * fixed_state.HOUR_MS)
        action = Action(event["action"])
        entry = HistoryEntry(f"{user_id}/{at}", event["item"], action, event["rating"], time_ms)
        rows += [entry.member(), str(time_ms).encode()]
    return rows


@cache
def _state(snapshot: str, rules: str) -> SimpleNamespace:
    """Catalogue, feed and snapshots of one variant of the fixed state."""
    catalogue = Catalogue()
    for item in fixed_state.catalogue() if snapshot != "empty" else ():
        fields = {"item_id": item["id"], **{k: v for k, v in item.items() if k != "id"}}
        catalogue.put(Item(**fields | {"categories": tuple(item["categories"])}))
    approved = frozenset(
        {fixed_state.item_id(fixed_state.QUARANTINED)} if snapshot == "approved" else ()
    )
    feed = _trends(snapshot not in ("empty", "catalogue_only"), approved)
    book = RuleBook(catalogue)
    book.rules = tuple(Rule.of(_rule(rule)) for rule in fixed_state.RULES[rules])
    main, extra = _models(snapshot)
    sources = SnapshotSources(feed, catalogue, book, clock_ms=lambda: fixed_state.NOW_MS)
    snapshots = SnapshotStore(sources, main)
    snapshots.use_in_experiments({extra.version: extra} if extra else {})
    snapshots.current = snapshots.build()
    return SimpleNamespace(catalogue=catalogue, feed=feed, snapshots=snapshots)


def _rule(rule: Mapping[str, Any]) -> RuleDraft:
    dates = {
        name: datetime.fromisoformat(rule[name]) for name in ("starts", "ends") if name in rule
    }
    return RuleDraft(**{**rule, **dates})


def _models(snapshot: str) -> tuple[LoadedModel, LoadedModel | None]:
    """The model that serves, and the one that experiments may name."""
    if snapshot in ("no_model", "catalogue_only", "empty"):
        return no_model(), None
    if snapshot == "formula":
        return _loaded("m1", "formula"), _loaded("m2", "trees")
    if snapshot in ("plain_model", "factors_only"):
        return _loaded("m1", "trees", snapshot), None
    return _loaded("m1", "trees"), _loaded("m2", "formula")


@cache
def _loaded(version: str, ranker: str, arrays: str = "all") -> LoadedModel:
    model = _model(version, arrays)
    return LoadedModel(
        version,
        model,
        FormulaRanker() if ranker == "formula" else RANKER,
        exact_search(model.factors) if model.factors is not None else None,
        exact_search(model.towers.targets) if model.towers is not None else None,
        content_search(model.content) if model.content is not None else None,
    )


def _model(version: str, arrays: str) -> Model:
    given = fixed_state.model(version)
    optional: dict[str, Any] = {}
    if arrays != "plain_model":
        optional["factors"] = given["factors"]
    if arrays == "all":
        optional |= {
            "content": given["content"],
            "words": WordVectors(*fixed_state.word_vectors()),
            "random_walk_items": given["walks"][0],
            "random_walk_scores": given["walks"][1],
            "towers": TowerArrays(
                given["tower_history"], given["tower_targets"], given["tower_ages"]
            ),
        }
    return Model(
        version=version,
        item_ids=given["ids"],
        popularity=given["popularity"],
        first_seen_ms=given["first_seen_ms"],
        neighbour_items=given["neighbours"][0],
        neighbour_scores=given["neighbours"][1],
        co_purchase_items=given["same_day"][0],
        co_purchase_scores=given["same_day"][1],
        als_alpha=given["als"][0],
        als_reg=given["als"][1],
        **optional,
    )


@cache
def _assignment() -> Assignment:
    experiments = []
    for given in fixed_state.EXPERIMENTS:
        arms = [Arm(**_arm(arm)) for arm in given["arms"]]
        decided_by = {"metric": Metric.CONVERSION, "plan": Plan(users=100)}
        experiments.append(Experiment.of(ExperimentDraft(**{**given, **decided_by, "arms": arms})))
    return Assignment(experiments)


def _arm(arm: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(arm)
    if "policy" in fields:
        fields["policy"] = POLICIES[fields["policy"]]
    if "sampling" in fields:
        fields["draw"] = SamplingPolicy(fields.pop("sampling"))
    if "weights" in fields:
        fields["weights"] = {TO_PART[part]: weight for part, weight in fields["weights"].items()}
    return fields


# Requests


class _Recorder:
    """The recommender, with its last answer at hand."""

    def __init__(self, recommender: Recommender) -> None:
        self._recommender = recommender
        self.last: Recommendation | None = None

    async def recommend(self, ask: RecommendationRequest) -> Recommendation:
        self.last = await self._recommender.recommend(ask)
        return self.last


async def _recommended(state: SimpleNamespace, spec: Spec) -> Answer:
    overloaded = [False]
    recommender = Recommender(
        cast(OnlineStore, _Store(spec.get("store") == "down")),
        state.snapshots,
        state.feed,
        PositionWaiters(0.001),
        RecommenderConfig(
            SIGNALS,
            3600.0,
            lambda _: overloaded[0],
            np.random.default_rng(spec.get("seed", 0)),
        ),
    )
    recorder = _Recorder(recommender)
    service: Any = object.__new__(Service)
    service.recommender = recorder
    named = fixed_state.SAVED_INTERESTS
    service.users = SimpleNamespace(interests_of=lambda user_id: named.get(user_id, ()))
    service.control = SimpleNamespace(
        assignment=_assignment() if spec.get("experiments") else Assignment()
    )
    service.snapshots = state.snapshots
    service.models = SimpleNamespace(unavailable_reason=lambda version: "not loaded")

    async def one(spec: Spec, cursor: str | None) -> dict[str, Any]:
        overloaded[0] = bool(spec.get("overloaded"))
        ask = _ask(spec, cursor)
        answer: dict[str, Any] = await service.recommend(replace(ask, preview=True))
        return answer

    if "first" in spec:
        await one({**spec, **spec["first"]}, None)
    if spec.get("rebuild"):
        state.snapshots.current = state.snapshots.build()
    cursor, pages = "*", 1
    body = await one(spec, cursor)
    while pages < spec.get("page", 1) and body["next"] is not None:
        cursor, pages = body["next"], pages + 1
        body = await one(spec, cursor)
    assert recorder.last is not None
    return _answer(body, recorder.last, pages)


def _ask(spec: Spec, cursor: str | None) -> RecommendationRequest:
    names = (("explore", "explore"), ("diversity", "diversity"), ("model", "model"))
    options: dict[str, Any] = {product: spec[golden] for golden, product in names if golden in spec}
    if "policy" in spec:
        options["policy"] = POLICIES[spec["policy"]]
    if "sampling" in spec:
        options["sampling"] = SamplingPolicy(spec["sampling"])
    weights = {TO_PART[part]: weight for part, weight in spec.get("weights", {}).items()}
    return RecommendationRequest(
        spec["user"],
        spec["n"],
        interests=tuple(spec.get("interests", ())),
        after=LogPosition.parse(spec["after"]) if "after" in spec else None,
        items=tuple(spec.get("items", ())),
        exclude=tuple(spec.get("exclude", ())),
        category=spec.get("category"),
        explain=spec.get("explain", False),
        filters=tuple(spec.get("filters", ())),
        options=Options(**options, weights=tuple(sorted(weights.items()))),
        policy_pinned="policy" in spec,
        page=_page(spec, cursor),
        never_shed=spec.get("never_shed", False),
    )


def _page(spec: Spec, cursor: str | None) -> Page:
    if "page" not in spec and "shown" not in spec:
        return Page(spec.get("offset", 0))
    shown = tuple(spec.get("shown", ())) if cursor in (None, "*") else decode_cursor(cursor or "*")
    return Page(spec.get("offset", 0), shown, paginate=True)


def _answer(body: Mapping[str, Any], made: Recommendation, pages: int) -> Answer:
    rows = orjson.loads(made.rendered.items)
    logged = [
        {k: row[k] for k in ("item_id", "score", "source", "propensity") if k in row}
        for row in rows
    ]
    assert orjson.loads(made.rendered.impression_rows) == logged, (
        "the impression differs from the list"
    )
    following, arm = body.get("next"), body.get("experiment")
    return {
        "tier": TIERS[body["source"]],
        "model": body["model_version"],
        "degraded": body["degraded"],
        "reduced": body["reduced"],
        "fresh": body["fresh"],
        "cached": made.cached,
        "arm": arm and [arm["name"], arm["arm"], "fallback" in arm],
        "pages": pages,
        "next": list(decode_cursor(following)) if following is not None else None,
        "items": [_item(row) for row in rows],
    }


def _item(row: Mapping[str, Any]) -> Answer:
    item: Answer = {
        "id": row["item_id"],
        "source": SOURCES[row["source"]],
        "score": row["score"],
        "parts": {PARTS[name]: amount for name, amount in row["contributions"].items()},
        "badges": sorted(row["badges"]),
    }
    if "propensity" in row:
        item["propensity"] = row["propensity"]
    if "attributions" in row:
        item["causes"] = [
            [cause["event_id"], cause["item_id"], cause["action"], cause["effect"]]
            for cause in row["attributions"]
        ]
    return item


# Lists for everyone


async def _listed(state: SimpleNamespace, spec: Spec) -> Answer:
    """Similar, popular or latest items, from the routes."""
    recommender = Recommender(
        cast(OnlineStore, _Store(False)),
        state.snapshots,
        state.feed,
        PositionWaiters(0.0),
        RecommenderConfig(SIGNALS),
    )
    service = cast(
        Service,
        SimpleNamespace(
            snapshots=state.snapshots, catalogue=state.catalogue, recommender=recommender
        ),
    )
    asked: dict[str, Any] = {
        name: spec[name] for name in ("n", "category", "filters") if name in spec
    }
    try:
        if spec["list"] == "similar":
            kinship = SIMILARITY[spec.get("by", "all")]
            query = queries.SimilarQuery(item_id=spec["item"], by=cast(Any, kinship), **asked)
            response = await recommendations.similar(service, query)
        elif spec["list"] == "popular":
            response = await recommendations.popular(
                service, queries.PopularQuery(window=spec["window"], **asked)
            )
        else:
            response = await recommendations.latest(service, queries.LatestQuery(**asked))
    except NotFound:
        return {"status": 404}
    rows = orjson.loads(response.body)["items"]
    return {"items": [{"id": row["item_id"], "score": row["score"]} for row in rows]}
