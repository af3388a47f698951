"""`evaluate` on a dataset: the table, the JSON and the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest
from typer.testing import CliRunner

from afterclick.errors import BadDataset, BadInput
from afterclick.settings import Settings, StreamSettings, TrainingSettings
from infra.cli import app
from training.config import PRESETS
from training.evaluation import reviews
from training.evaluation.list_analysis import ClickModel, simulate
from training.evaluation.measure import Answers
from training.evaluation.time_split import cut_of
from training.mlflow_registry import MlflowRegistry
from training.protocols import PROTOCOLS, Queries

DAY_S = 86_400
HEAD = "user_id,item_id,timestamp,time_quality\n"


def a_dataset(folder: Path, users: int = 700, items: int = 60) -> Path:
    """Two kinds of users, each with half of the catalogue, over 400 days; one time in ten is
    guessed."""
    random = np.random.default_rng(4)
    rows = []
    for user in range(users):
        start = random.integers(0, 390)
        for item in random.choice(items // 2, random.integers(2, 7), replace=False):
            day = start + random.integers(0, 10)
            quality = "estimated" if random.random() < 0.1 else "exact"
            rows.append(f"u{user},i{2 * item + user % 2},{day * DAY_S},{quality}\n")
    (folder / "reviews.csv").write_text(HEAD + "".join(rows))
    titles = (f"i{n},Cable {n},Electronics\n" for n in range(0, items, 2))
    (folder / "items.csv").write_text("item_id,title,categories\n" + "".join(titles))
    return folder


@pytest.mark.slow
def test_evaluate_prints_and_records_every_model_and_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report"
    arguments = [
        "evaluate",
        "--dataset",
        str(a_dataset(tmp_path)),
        "--users",
        "60",
        "--seeds",
        "2",
        "--json",
        "--report",
        str(report),
        "--record",
    ]
    monkeypatch.setenv("AFTERCLICK_HOME", str(tmp_path / "home"))
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    result = orjson.loads(done.stdout.splitlines()[-1])
    compared = (
        "popularity decayed_popularity item_item last_item co_purchase random_walk transitions "
        "transitions_live als ncf sequence content blend"
    )
    assert list(result["models"]) == compared.split()
    assert {"train", "valid", "items", "cut", "users"} <= set(result["split"])
    for measured in result["models"].values():
        assert set(measured) == set(PROTOCOLS)
        for metric in ("hr@10", "hr@20", "ndcg@10", "recall@20", "ndcg@20", "mrr", "coverage@10"):
            value, (low, high) = measured["live"][metric], measured["live"][f"{metric}_interval"]
            assert 0.0 <= value <= 1.0
            assert low <= high
    # buyers of odd items buy odd items: ten of thirty, against ten of sixty by chance
    live = {name: measured["live"]["hr@10"] for name, measured in result["models"].items()}
    assert live["blend"] > live["popularity"]
    lift = {
        name: measured["live"]["popularity_lift@10"] for name, measured in result["models"].items()
    }
    assert lift["popularity"] == max(lift.values()) > 0.0
    assert result["models"]["popularity"]["cold"]["popularity_lift@10"] is None
    assert sorted(p.name for p in report.iterdir()) == [
        "hit_rate.png",
        "importance.png",
        "report.md",
        "segments.png",
    ]
    text = (report / "report.md").read_text()
    assert "| live | " in text
    assert "- Base: decayed_popularity." in text
    assert "1 / rank^1.0: 1.00, 0.50, 0.33" in text
    assert "| gini@10 | diversity@10 | novelty@10 | popularity_lift@10 |" in text
    registry = MlflowRegistry(Settings(home=tmp_path / "home"))
    run = registry.client.search_runs([registry.experiment()])[0]
    assert run.data.metrics["blend.live.hr_at_10"] == live["blend"]
    # the values of the preset that the pipeline trains with, too
    params, knobs = run.data.params, TrainingSettings()
    preset = PRESETS[knobs.preset]
    assert params["ranker.cuts"] == str(preset["ranker_cuts"])
    assert params["ranker.queries"] == str(preset["ranker_queries"])
    assert params["towers.epochs"] == str(preset["tower_epochs"])
    assert (params["als.rank"], params["als.reg"]) == (str(knobs.rank), str(knobs.reg))
    assert (params["content"], params["engine"], params["users"]) == ("tfidf", "spark", "60")
    assert not {"ranker_cuts", "tower_epochs", "rank"} & set(params)
    kept = [file.path for file in registry.client.list_artifacts(run.info.run_id, "report")]
    assert {"report/report.md", "report/hit_rate.png"} <= set(kept)


def test_reviews_of_guessed_time_are_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text(HEAD + "a,x,200,exact\nb,x,100,near\na,y,300,estimated\n")
    found = reviews.load(tmp_path, StreamSettings().signals)
    assert found.log.trusted.tolist() == [False, True, False]
    assert found.log.time_ms.tolist() == [100_000, 200_000, 300_000]
    assert found.log.weight.tolist() == [2.0, 2.0, 2.0]


def test_the_official_ratings_file_has_no_header(tmp_path: Path) -> None:
    path = tmp_path / "ratings_Electronics.csv"
    path.write_text("ann,0132793040,5.0,1365811200\nbob,0132793040,1.0,1341100800\n")
    found = reviews.load(path)
    assert found.log.user_ids[found.log.user].tolist() == ["bob", "ann"]
    assert found.log.item_ids.tolist() == ["0132793040"]  # an id, not a number
    assert found.log.trusted.all()


def test_liked_stands_in_for_unknown_stars(tmp_path: Path) -> None:
    """Known stars are preferred; a review with neither weighs as one without stars."""
    (tmp_path / "reviews.csv").write_text(
        "user_id,item_id,timestamp,rating,liked\na,v,1,5,\na,w,2,1,1\na,x,3,,1\na,y,4,,0\na,z,5,,\n"
    )
    signals = StreamSettings().signals
    found = reviews.load(tmp_path, signals).log
    assert found.stars.tolist() == [5, 1, 4, 2, 0]
    assert found.weight[2] == signals.stars[4]
    assert found.weight[3] == signals.stars[2] < 0 < found.weight[4]


@pytest.mark.parametrize(("column", "value"), [("rating", "6"), ("liked", "2"), ("liked", "-1")])
def test_a_value_outside_its_range_is_rejected_by_column(
    column: str, value: str, tmp_path: Path
) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text(f"user_id,item_id,timestamp,{column}\na,x,1,{value}\n")
    with pytest.raises(BadDataset, match=f"{column}: a value is outside 0 to"):
        reviews.load(tmp_path)


def test_ratings_with_the_item_first_are_recognised(tmp_path: Path) -> None:
    path = tmp_path / "Electronics.csv"
    path.write_text("0132793040,AKM1MP6P0OYPR,5.0,1365811200\nB0000DYV9H,A2CX7LUOHB2NDG,1,1\n")
    found = reviews.load(path).log
    assert set(found.user_ids) == {"AKM1MP6P0OYPR", "A2CX7LUOHB2NDG"}


def test_a_repeated_review_counts_once(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("user_id,item_id,timestamp\na,x,200\na,x,100\n")
    assert reviews.load(tmp_path).log.time_ms.tolist() == [100_000]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("user_id,item_id\na,x\n", "timestamp is missing"),
        ("user_id,item_id,timestamp\n", "no reviews"),
    ],
)
def test_a_file_without_reviews_is_rejected_by_name(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text(text)
    with pytest.raises(BadDataset, match=problem):
        reviews.load(path)


def test_an_empty_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="expected one of"):
        reviews.load(tmp_path)


def test_a_cut_outside_the_log_is_rejected(tmp_path: Path) -> None:
    log = reviews.load(a_dataset(tmp_path)).log
    assert cut_of(log, "1970-06-01") == 151 * DAY_S * 1000
    for day in ("2030-01-01", "1960-01-01", "soon"):
        with pytest.raises(BadInput, match="--cut"):
            cut_of(log, day)


def test_the_default_cut_is_the_first_of_a_month_that_leaves_a_test(tmp_path: Path) -> None:
    log = reviews.load(a_dataset(tmp_path)).log
    cut = cut_of(log, None)
    assert cut == 365 * DAY_S * 1000 or cut == 334 * DAY_S * 1000
    assert (log.time_ms >= cut).mean() >= 0.05


def answers(places: dict[str, list[int | None]]) -> Answers:
    """Recommender → rank of each user's target in the list (None: not listed)."""
    users = len(next(iter(places.values())))
    empty = np.zeros(users, np.int64)
    targets = np.full((users, 1), 500, np.int32)
    asked = Queries(
        user=empty.astype(np.int32),
        targets=targets,
        grades=np.ones((users, 1), np.float32),
        organic=np.ones(users, bool),
        weight=np.ones(users, np.float32),
        target_ms=empty,
        now_ms=empty,
        live=np.full((users, 1), -1, np.int32),
    )
    lists = {}
    for name, found in places.items():
        lists[name] = np.tile(np.arange(100, dtype=np.int32), (users, 1))
        for user, place in enumerate(found):
            if place is not None:
                lists[name][user, place] = 500
    return Answers(asked, lists)


def test_expected_clicks_follow_the_stated_model() -> None:
    model = ClickModel(eta=1.0, relevant=0.5, other=0.0)
    found = simulate(answers({"decayed_popularity": [0, None], "blend": [0, 1]}))
    hits = np.zeros((1, 10), bool)
    hits[0, 1] = True
    assert model.clicks(hits, np.ones((1, 10), bool))[0] == pytest.approx(0.25)
    assert found["lists"]["decayed_popularity"]["click_lift"] == 0.0
    assert found["lists"]["blend"]["click_lift"] > 0.3
    assert found["assumptions"]["eta"] == 1.0
    assert found["assumptions"]["position_weights"][:2] == [1.0, 0.5]


def test_the_lift_is_over_decayed_popularity_and_all_time_popularity_is_no_base() -> None:
    places: dict[str, list[int | None]] = {
        "popularity": [9, None],
        "decayed_popularity": [0, None],
        "blend": [0, None],
    }
    found = simulate(answers(places))
    assert found["assumptions"]["base"] == "decayed_popularity"
    assert found["lists"]["blend"]["click_lift"] == 0.0
    assert found["lists"]["popularity"]["purchase_lift"] == pytest.approx(-0.9, abs=0.01)


def test_the_lift_states_the_assumptions_it_depends_on() -> None:
    found = simulate(answers({"decayed_popularity": [9, None] * 50, "blend": [0, None] * 50}))
    lift = {what: by_name["blend"] for what, by_name in found["sensitivity"].items()}
    assert lift["strong position bias"] > lift["no position bias"] == pytest.approx(0.0)
    low, high = found["lists"]["blend"]["click_lift_interval"]
    assert low < found["lists"]["blend"]["click_lift"] < high
