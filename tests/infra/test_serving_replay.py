"""The serving code over past events: what a list may know, schedules, figures and commands."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import orjson
import pytest
from typer.testing import CliRunner

from afterclick import artifact
from afterclick.arrays import BoolArray
from afterclick.errors import BadArtifact, BadInput
from afterclick.events import Action
from afterclick.ranking import FormulaRanker
from afterclick.settings import Settings
from afterclick.state import HistoryEntry
from afterclick.trends import TrendTable
from infra.cli import app
from infra.prequential.past_models import SCHEDULES, PublishedModels, Retrain, TrainedModel
from infra.prequential.past_state import LoggedHistories, Moment, PastTrends, found_leaks
from infra.prequential.replay_figures import DELAYS_S, freshness_figures
from infra.prequential.replay_window import ReplayRequest, Window, window_of
from infra.prequential.serving_replay import Arm, ReplayedShop, ServingReplay, Walk
from serving.state.history import Rows, entries
from serving.state.live_trends import TrendState
from serving.state.loaded_models import no_model
from tests.serving import shop
from tests.training.shop import DAY_MS, interactions, write_tables
from tests.training.test_evaluation_reports import a_dataset
from training.evaluation import scorers
from training.evaluation.measure import FullRanking, answer
from training.event_log import EventLog
from training.graph_replay import GraphReplay
from training.interactions import Interactions
from training.models.popularity import trends_at
from training.protocols import EvaluationSplit, Queries, every_choice

HOUR_MS, START_MS = 3_600_000, 1_400_000_000_000
CUT_MS = START_MS + 20 * DAY_MS


def a_log(users: int = 40, items: int = 15, events: int = 6) -> EventLog:
    """Each user takes `events` items, an hour apart, from a moment of 40 days on."""
    random = np.random.default_rng(3)
    first = START_MS + random.integers(0, 40 * 24, users) * HOUR_MS
    item = np.concatenate([random.choice(items, events, replace=False) for _ in range(users)])
    times = first[:, None] + np.arange(events) * HOUR_MS
    return EventLog.of(
        Interactions(
            np.array([f"u{n}" for n in range(users)]),
            np.array([f"i{n}" for n in range(items)]),
            np.repeat(np.arange(users, dtype=np.int32), events),
            item.astype(np.int32),
            times.ravel(),
            np.full(users * events, 2.0, np.float32),
        )
    )


class NoModels:
    """Trainings whose data ends `late_ms` after their cut, and that learn nothing."""

    def __init__(self, late_ms: int = 0) -> None:
        self.cuts: list[int] = []
        self._late_ms = late_ms

    def at(self, cut_ms: int) -> TrainedModel:
        self.cuts.append(cut_ms)
        return TrainedModel(no_model(), cut_ms + self._late_ms)


class HistoriesFromTheFuture(LoggedHistories):
    """Histories that are an hour ahead."""

    def rows_at(self, user_id: str, moment: Moment) -> Rows:
        later = Moment(moment.now_ms + HOUR_MS, moment.live, moment.delay_ms)
        return super().rows_at(user_id, later)


def a_shop(log: EventLog) -> ReplayedShop:
    return ReplayedShop.of(Settings(), log, {})


def asked(log: EventLog) -> Queries:
    return every_choice(EvaluationSplit(log, CUT_MS, int(log.time_ms[-1]) + 1))


def walked(
    models: NoModels | None = None, leaky: bool = False, arms: tuple[Arm, ...] = (Arm(),)
) -> Walk:
    log = a_log()
    shop = a_shop(log)
    histories = HistoriesFromTheFuture(log, 200) if leaky else None
    replay = ServingReplay(shop, models or NoModels(), CUT_MS, histories)
    return replay.walk(asked(log), arms)


def test_lists_from_the_past_have_no_leaks() -> None:
    walk = walked()
    lists = walk.lists[Arm()]
    assert len(walk.queries) > 50
    assert not lists.leaks.any()
    assert (lists.items >= 0).any(axis=1).all()
    assert set(lists.tier) == {"trending", "personalised"}


def test_histories_from_the_future_are_counted_as_leaks() -> None:
    leaks = walked(leaky=True).lists[Arm()].leaks
    assert leaks.mean() > 0.5  # of the users' last events there is no later one


@pytest.mark.parametrize(("late_ms", "share"), [(0, 0.0), (40 * DAY_MS, 1.0)])
def test_a_model_that_was_trained_after_the_moment_is_a_leak(late_ms: int, share: float) -> None:
    assert walked(NoModels(late_ms)).lists[Arm()].leaks.mean() == share


def test_an_event_at_the_moment_itself_leaks_unless_it_is_the_live_event() -> None:
    moment = Moment(START_MS, np.array([7], np.int32))
    model = TrainedModel(no_model(), START_MS)

    def leaks(event_id: str, time_ms: int, at: Moment = moment) -> bool:
        event = HistoryEntry(event_id, "i1", Action.REVIEW, None, time_ms)
        return found_leaks([event], at, TrendState(), model)

    assert not leaks("3", START_MS - 1)
    assert not leaks("7", START_MS)
    assert leaks("3", START_MS)
    assert leaks("7", START_MS + 1)
    delayed = Moment(START_MS, moment.live, 1000)
    assert leaks("7", START_MS, delayed)
    assert leaks("3", START_MS - 1000, delayed)
    assert not leaks("3", START_MS - 1001, delayed)


def test_trends_with_an_event_at_the_moment_leak() -> None:
    moment, model = Moment(START_MS, np.array([-1], np.int32)), TrainedModel(no_model(), START_MS)
    for time_ms, leak in ((START_MS - 1, False), (START_MS, True)):
        trends = TrendState()
        trends.table.add("i1", time_ms, 1.0)
        assert found_leaks([], moment, trends, model) is leak


def test_a_static_graph_leaves_a_shop_without_a_model_general() -> None:
    static, live = Arm(live_graph=False), Arm()
    walk = walked(arms=(static, live))
    assert set(walk.lists[static].tier) == {"trending"}
    assert "personalised" in walk.lists[live].tier


def test_a_delay_hides_the_newest_events_and_the_live_event() -> None:
    log = a_log(users=3)
    mine = np.flatnonzero(log.user == 1)
    now_ms, live = int(log.time_ms[mine[4]]), mine[4:5].astype(np.int32)
    histories = LoggedHistories(log, length=3)

    def known(delay_ms: int) -> list[str]:
        rows = histories.rows_at("u1", Moment(now_ms, live, delay_ms))
        return [entry.event_id for entry in entries(rows)]

    newest_first = [str(row) for row in mine[4::-1].tolist()]
    assert known(0) == newest_first[:3]
    assert known(1) == newest_first[1:4]
    assert known(HOUR_MS) == newest_first[2:5]
    assert known(DAY_MS) == []
    assert histories.rows_at("unknown", Moment(now_ms, live)) == []


def test_trends_are_those_of_training_and_of_the_stream() -> None:
    log = a_log()
    shop = a_shop(log)
    trends, one_by_one = PastTrends(log, shop.known), TrendTable()
    moments = log.time_ms[[20, 21, 90, 200]] + 1
    done = 0
    for moment, limited in trends_at(log, moments, shop.known):
        trends.advance(moment)
        end = int(np.searchsorted(log.time_ms, moment))
        for item, time_ms in zip(log.item[done:end], log.time_ms[done:end], strict=True):
            one_by_one.add(f"i{item}", float(time_ms), 2.0)
        done = end
        table = trends.table
        rows = [table.row(item_id) for item_id in one_by_one.ids]
        assert table.values(moment)[rows] == pytest.approx(one_by_one.values(moment))
        assert table.counts[rows].tolist() == one_by_one.counts.tolist()
        of_training = limited.values[[int(item_id[1:]) for item_id in one_by_one.ids]]
        assert table.values(moment)[rows] == pytest.approx(of_training)


def test_ratings_count_as_in_the_stream() -> None:
    times = START_MS + np.arange(3) * DAY_MS
    user, item = np.array([0, 1, 0], np.int32), np.zeros(3, np.int32)
    weights, stars = np.array([-1.0, 2.0, 3.0], np.float32), np.array([2, 0, 5], np.int8)
    rows = Interactions(np.array(["ann", "bob"]), np.array(["i0"]), user, item, times, weights)
    log = EventLog.of(rows, stars=stars)
    trends = PastTrends(log, a_shop(log).known)
    found = []
    for moment in (times + 1).tolist():
        trends.advance(moment)
        found.append((int(trends.table.counts[0]), *trends.table.stars[0].tolist()))
    # interactions, ratings in effect, their stars, positive ones, and ever not positive
    assert found == [(1, 1, 2, 0, 1), (2, 1, 2, 0, 1), (3, 1, 5, 1, 1)]


def test_schedules_share_the_models_of_one_moment() -> None:
    models = NoModels()
    arms = tuple(Arm(retrain) for retrain in SCHEDULES)
    walk = walked(models, arms=arms)
    days = np.unique((walk.queries.now_ms - CUT_MS) // DAY_MS)
    weeks = {int(day) // 7 * 7 for day in days}
    expected = {0, *days.tolist(), *weeks}
    assert models.cuts == sorted(models.cuts)
    assert [(cut - CUT_MS) // DAY_MS for cut in models.cuts] == sorted(expected)
    assert not any(lists.leaks.any() for lists in walk.lists.values())


def test_schedules_train_at_fixed_intervals() -> None:
    week, later = 7 * DAY_MS, CUT_MS + 16 * DAY_MS + 5
    assert Retrain.NEVER.cut_ms(CUT_MS, later) == CUT_MS
    assert Retrain.WEEKLY.cut_ms(CUT_MS, later) == CUT_MS + 2 * week
    assert Retrain.DAILY.cut_ms(CUT_MS, later) == CUT_MS + 16 * DAY_MS


def an_artifact(root: Path, version: str, days: float, newest_ms: int | None) -> None:
    """A model that was created some days after the start."""
    made = shop.model(version)
    created = datetime.fromtimestamp(START_MS / 1000 + days * 86_400, UTC).isoformat()
    lineage = {} if newest_ms is None else {"newest_ms": newest_ms}
    artifact.write(
        root,
        version,
        made.save,
        items=len(made),
        created=created,
        parameters=made.parameters(),
        lineage=lineage,
    )


def test_a_published_model_serves_from_its_creation_to_that_of_the_next(tmp_path: Path) -> None:
    an_artifact(tmp_path, "b-first", 1.0, START_MS)
    an_artifact(tmp_path, "a-second", 3.0, START_MS + 2 * DAY_MS)
    (tmp_path / ".c-third-unfinished").mkdir()
    models = PublishedModels(tmp_path)
    served = [models.at(START_MS + day * DAY_MS) for day in range(5)]
    assert [model.loaded.version for model in served] == ["", *["b-first"] * 2, *["a-second"] * 2]
    assert served[1] is served[2]
    assert served[4].end_ms == START_MS + 2 * DAY_MS + 1


def test_published_models_must_say_what_they_learned_from(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no models"):
        PublishedModels(tmp_path)
    an_artifact(tmp_path, "m1", 1.0, None)
    with pytest.raises(BadArtifact, match="m1: no newest_ms"):
        PublishedModels(tmp_path)


def test_a_published_model_that_knew_later_events_is_a_leak(tmp_path: Path) -> None:
    an_artifact(tmp_path, "honest", 0.0, START_MS - 1)
    log = a_log()
    published = (Arm(Retrain.PUBLISHED),)

    def leaks() -> BoolArray:
        walk = ServingReplay(a_shop(log), PublishedModels(tmp_path), CUT_MS).walk(
            asked(log), published
        )
        return walk.lists[published[0]].leaks

    assert not leaks().any()
    an_artifact(tmp_path, "hindsight", 20.0, int(log.time_ms[-1]))
    assert leaks().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "1971-02-01", "--to", "1971-01-01"], "is not before --to"),
        (["--from", "1971-02-30"], "expected a day"),
        (["--from", "1999-01-01"], "the interactions run from"),
        (["--preset", "slow"], "expected fast or full"),
        (["--retrain", "hourly"], "expected one of never, weekly, daily, published"),
        (["--ask", "cold"], "expected one of every, live"),
        (["--from", "1970-01-03"], "too few interactions before it"),
    ],
)
def test_invalid_options_are_one_clear_error(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    command = ["replay-serving", "--dataset", str(a_dataset(tmp_path)), *arguments]
    failed = CliRunner().invoke(app, command)
    assert isinstance(failed.exception, BadInput)
    assert message in str(failed.exception)


def test_without_a_dataset_the_tables_of_the_etl_are_replayed(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    write_tables(settings, interactions([(n % 7, n // 7) for n in range(70)], 7, 10), {"i1": "One"})
    window = window_of(settings, ReplayRequest(from_day="2026-02-01", to_day="2026-03-01"))
    assert window.facts() == {
        "from": "2026-02-01",
        "to": "2026-02-28",
        "queries": 28,
        "queries_in_window": 28,
        "users": 7,
    }
    assert list(window.shop.texts) == ["i1"]


def test_a_window_without_new_items_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text(
        "user_id,item_id,timestamp,time_quality\nu1,i1,0,exact\nu1,i2,864000,estimated\n"
    )
    with pytest.raises(BadInput, match="nothing to ask about from 1970-01-05 to 1970-01-11"):
        window_of(Settings(), ReplayRequest(tmp_path, "1970-01-05"))


def test_a_figure_needs_a_known_format(tmp_path: Path) -> None:
    command = ["value-of-freshness", "--figure", "curve.txt", "--dataset", str(tmp_path)]
    failed = CliRunner().invoke(app, command)
    assert isinstance(failed.exception, BadInput)
    assert ".png, .svg" in str(failed.exception)


def test_a_delay_of_nothing_changes_nothing() -> None:
    delays = tuple(Arm(delay_s=delay) for delay in DELAYS_S)
    walk, alone = walked(arms=delays), walked()
    assert (walk.lists[Arm()].items == alone.lists[Arm()].items).all()
    shop, queries = a_shop(a_log()), walk.queries
    window = Window(shop, CUT_MS, int(shop.log.time_ms[-1]) + 1, queries, len(queries))
    curve = freshness_figures(window, walk, Retrain.NEVER)["delays"]
    assert curve[0]["difference"] == 0.0
    assert [point["delay_s"] for point in curve] == list(DELAYS_S)


def test_a_delay_keeps_the_list_of_a_new_user_general(tmp_path: Path) -> None:
    an_artifact(tmp_path, "m1", 0.0, START_MS)
    ids = shop.item_ids()
    cameras = [ids.index(item_id) for item_id in ("camera-1", "camera-2", "camera-3")]
    times = CUT_MS + np.array([-DAY_MS, 0, HOUR_MS, 3 * HOUR_MS])
    users, items = np.array([0, 1, 1, 1], np.int32), np.array([0, *cameras], np.int32)
    weights = np.full(4, 2.0, np.float32)
    log = EventLog.of(
        Interactions(np.array(["ann", "bob"]), np.array(ids), users, items, times, weights)
    )
    fresh, late = (Arm(Retrain.PUBLISHED, delay) for delay in (0.0, 3_600.0))
    replay = ServingReplay(a_shop(log), PublishedModels(tmp_path), CUT_MS)
    walk = replay.walk(asked(log), [fresh, late])
    assert walk.lists[fresh].tier == ["trending", "personalised", "personalised"]
    assert walk.lists[late].tier == ["trending", "trending", "personalised"]
    assert not walk.lists[fresh].leaks.any()
    assert not walk.lists[late].leaks.any()


def test_serving_shows_what_the_evaluation_measures(tmp_path: Path) -> None:
    """The same model, asked the same questions by both."""
    an_artifact(tmp_path, "m1", 0.0, START_MS)
    names = np.array(shop.item_ids())
    log = replace(a_log(items=len(names)), item_ids=names)
    arm = Arm(Retrain.PUBLISHED)
    queries = asked(log)
    served = ServingReplay(a_shop(log), PublishedModels(tmp_path), CUT_MS).walk(queries, [arm])
    every = np.ones(len(names), bool)
    model = shop.model("m1")
    graphs = GraphReplay(model, log, START_MS + 1)
    scorer = scorers.blend(model, FormulaRanker(), every, graphs=graphs)
    blend = FullRanking(scorer, every, seed=0)
    evaluated = answer(log, queries, {"blend": blend}, 10).lists["blend"]
    personal = np.array(served.lists[arm].tier) == "personalised"
    shared = [
        len(set(ours) & set(theirs)) / 10
        for ours, theirs in zip(served.lists[arm].items[personal], evaluated[personal], strict=True)
    ]
    assert len(shared) > 50
    assert np.mean(shared) > 0.95


@pytest.mark.slow
def test_both_commands_measure_the_same_lists_by_models_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFTERCLICK_HOME", str(tmp_path / "home"))
    for epochs in ("TOWER_EPOCHS", "NCF_EPOCHS"):  # torch takes seconds to import
        monkeypatch.setenv(f"AFTERCLICK_TRAINING__{epochs}", "0")
    shared = ["--dataset", str(a_dataset(tmp_path)), "--from", "1971-01-22", "--json"]
    figure = tmp_path / "figures" / "curve.png"

    def result(*arguments: str) -> dict[str, object]:
        done = CliRunner().invoke(app, [*arguments, *shared], catch_exceptions=False)
        assert done.exit_code == 0
        found: dict[str, object] = orjson.loads(done.stdout.splitlines()[-1])
        return found

    replayed = result("replay-serving", "--retrain", "weekly")
    keys = "queries days hr@10 ndcg@10 coverage@10 by_day model_versions seconds leaks"
    assert set(keys.split()) <= set(replayed)
    curve = result("value-of-freshness", "--retrain", "weekly", "--retrain", "never",
                   "--figure", str(figure))  # fmt: skip
    delays, retraining = curve["delays"], curve["retraining"]
    assert replayed["leaks"] == curve["leaks"] == 0
    assert isinstance(delays, list)
    assert isinstance(retraining, list)
    assert delays[0]["hr@10"] == replayed["hr@10"] == retraining[0]["hr@10"]
    assert len(replayed["model_versions"]) == retraining[0]["models"] > 1  # type: ignore[arg-type]
    assert figure.stat().st_size > 10_000
