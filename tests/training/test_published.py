"""Every model behind one interface, on a checkerboard whose answer is obvious; and the protocol."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from afterclick.errors import BadDataset
from tests.training import shop
from training.evaluation.benchmark_models import EpochModel, MatrixModel, defaults, make, observe
from training.evaluation.published import BenchmarkRequest, ModelSearch, run
from training.evaluation.published_split import PublishedSplit, RankingTask, load
from training.interactions import Interactions
from training.models.item_item import PLAIN_FROM, ItemItem
from training.models.stopping import EarlyStopping


def test_a_large_catalogue_is_solved_over_neighbours() -> None:
    train = shop.checkerboard()[0].matrix()
    dense, local = ItemItem(), ItemItem(dense_up_to=10)
    dense.fit(train, seed=1)
    local.fit(train, seed=1)
    users = np.arange(train.shape[0])
    # with more neighbours than items it is the same regression
    np.testing.assert_allclose(local.scores(users), dense.scores(users), rtol=1e-3, atol=1e-5)


def test_a_two_tower_vector_is_computed_without_torch() -> None:
    import torch

    from training.models.two_tower import TwoTower

    train, model = shop.checkerboard()[0].matrix(), TwoTower(dim=16, epochs=2)
    model.fit(train, seed=1)
    user = 3
    past = torch.from_numpy(train[user].indices.astype(np.int64))
    with torch.no_grad():
        total = model._towers.past(past).sum(0)[None]
        expected = model._towers.users(
            torch.tensor([user]), total, torch.tensor([float(len(past))])
        )
    np.testing.assert_allclose(model.vectors(np.array([user])), expected.numpy(), atol=1e-5)


def test_metrics_agree_with_an_independent_computation() -> None:
    scores = np.array([[9.0, 8, 7, 6, 5], [1, 2, 3, 4, 5]], np.float32)
    seen = sparse.csr_matrix(np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 1.0]], np.float32))
    target = sparse.csr_matrix(np.array([[0, 0, 1, 1, 0], [0, 0, 0, 1, 0]], np.float32))
    found = RankingTask(seen, target).measure(lambda users: scores[users])
    first = (1 / np.log2(3) + 1 / np.log2(4)) / (
        1 + 1 / np.log2(3)
    )  # places 2 and 3 of the best 1 and 2
    assert found["ndcg@20"] == pytest.approx((first + 1.0) / 2)
    assert found["recall@20"] == found["hr@20"] == 1.0
    assert found["f1@20"] == pytest.approx((2 * 0.1 / 1.1 + 2 * 0.05 / 1.05) / 2)


def write(folder: Path, valid: bool) -> Path:
    rows, held = shop.checkerboard()
    pairs = [f"u-{u},i-{i},{n}" for n, (u, i) in enumerate(zip(rows.user, rows.item, strict=True))]
    (folder / "train.csv").write_text("\n".join(["user_id,item_id,timestamp", *pairs]))
    lines = ["user_id,item_id", *(f"u-{u},i-{i}" for u, i in held)]
    (folder / "test.csv").write_text("\n".join(lines[:1] + lines[1::2]))
    if valid:
        (folder / "valid.csv").write_text("\n".join(lines[:1] + lines[2::2]))
    return folder


@pytest.mark.parametrize("valid", [True, False])
def test_a_split_is_tuned_and_measured(tmp_path: Path, valid: bool) -> None:
    answer = run(BenchmarkRequest(write(tmp_path, valid), "item_item", trials=4))
    assert answer["tuned_on"] == ("valid" if valid else "rows cut from train")
    assert answer["trials"] == 4
    assert answer["recall@20"] > 0.95
    figures = {
        "recall@20",
        "ndcg@20",
        "f1@20",
        "hr@10",
        "ndcg@10",
        "hr@20",
        "fit_seconds",
        "tune_seconds",
    }
    assert figures | {"model", "users", "items", "peak_mb", "params"} <= set(answer)


def test_any_ids_compressed_files_and_new_users_are_accepted(tmp_path: Path) -> None:
    write(tmp_path, valid=False)
    odd = {"i-0": "NA", "i-1": "null", "i-2": "1e5", "u-0": 'ü, "x"', "u-1": "a\tb;c"}
    for name in ("train", "test"):
        frame = pd.read_csv(tmp_path / f"{name}.csv").replace(odd)
        if name == "test":
            frame.loc[len(frame)] = ["new\u00a0user", "NA"]
        else:
            frame["timestamp"] = pd.to_datetime(frame["timestamp"], unit="D")
        frame.to_csv(tmp_path / f"{name}.csv.gz", index=False, encoding="utf-8-sig")
        (tmp_path / f"{name}.csv").unlink()
    whole = len(shop.checkerboard()[0])
    split = load(tmp_path)
    assert len(split.train) + len(split.valid) == whole
    answer = run(BenchmarkRequest(tmp_path, "item_item", trials=1))
    assert (answer["users"], answer["items"]) == (41, 40)
    assert answer["recall@20"] > 0.9


def test_a_search_without_time_runs_one_trial(tmp_path: Path) -> None:
    assert (
        run(BenchmarkRequest(write(tmp_path, valid=True), "item_item", trials=9, seconds=1e-3))[
            "trials"
        ]
        == 1
    )


def test_the_newest_rows_stand_in_for_missing_validation_rows(tmp_path: Path) -> None:
    split = load(write(tmp_path, valid=False))
    whole = sum(1 for _ in (tmp_path / "train.csv").open()) - 1
    assert split.inner
    assert len(split.train) + len(split.valid) == whole
    assert not split.train.matrix().multiply(split.valid.matrix()).nnz
    assert split.valid.user_counts().min() >= 1


def test_validation_rows_of_equal_times_are_drawn_by_chance(tmp_path: Path) -> None:
    pairs = [f"u-{user},i-{item},1" for user in range(400) for item in range(10)]
    (tmp_path / "train.csv").write_text("\n".join(["user_id,item_id,timestamp", *pairs]))
    (tmp_path / "test.csv").write_text("user_id,item_id\nu-0,i-0")
    held_out = load(tmp_path).valid.item_counts()
    assert held_out.sum() == 400
    assert held_out.min() > 20  # of the 40 that each item has on average


def test_the_test_rows_do_not_touch_the_search(tmp_path: Path) -> None:
    first = run(BenchmarkRequest(write(tmp_path, valid=True), "item_item", trials=4))
    test = (tmp_path / "test.csv").read_text().splitlines()
    (tmp_path / "test.csv").write_text("\n".join(test[:5]))
    assert run(BenchmarkRequest(tmp_path, "item_item", trials=4))["params"] == first["params"]


def test_a_folder_without_rows_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match=r"no train\.csv"):
        load(tmp_path)
    (tmp_path / "train.csv").write_text("a,b\n1,2")
    with pytest.raises(BadDataset, match="user_id,item_id"):
        load(tmp_path)


def given_negatives(folder: Path, paper: bool) -> Path:
    """Every user's target among three items of the other kind, which no user of this kind
    has."""
    targets = [line.split(",") for line in (folder / "test.csv").read_text().splitlines()[1:]]
    rows = []
    for user, item in targets:
        others = [f"i-{(int(item.split('-')[1]) + step) % 40}" for step in (1, 3, 5)]
        rows.append((user, item, others))
    path = folder / ("test.negative" if paper else "negatives.csv")
    if paper:
        path.write_text(
            "".join(f"({user},{item})\t" + "\t".join(o) + "\n" for user, item, o in rows)
        )
    else:
        pairs = [f"{user},{other}\n" for user, _, o in rows for other in o]
        path.write_text("user_id,item_id\n" + "".join(pairs))
    return path


@pytest.mark.parametrize("paper", [True, False])
def test_a_target_is_ranked_among_its_given_negatives_only(tmp_path: Path, paper: bool) -> None:
    write(tmp_path, valid=False)
    negatives = given_negatives(tmp_path, paper)
    split = load(tmp_path, negatives=negatives)
    assert (np.diff(split.among.indptr)[np.diff(split.test.indptr) > 0] == 3).all()
    answer = run(BenchmarkRequest(tmp_path, "item_item", trials=0, negatives=negatives))
    assert (answer["protocol"], answer["ndcg@10"]) == ("ncf", 1.0)

    def targets_last(users: np.ndarray) -> np.ndarray:
        return -np.asarray(split.test[users].toarray())

    worst = RankingTask(split.train.matrix(), split.test).measure(targets_last)
    among = RankingTask(split.train.matrix(), split.test, split.among).measure(targets_last)
    assert worst["hr@10"] < 0.5  # last of all items
    assert among["ndcg@10"] == pytest.approx(1 / np.log2(5))  # last of four


@pytest.mark.parametrize("text", ["(u-1,i-1)", "user,item\n", "(1)\ti-2"])
def test_malformed_negatives_are_rejected(tmp_path: Path, text: str) -> None:
    write(tmp_path, valid=False)
    (tmp_path / "bad").write_text(text)
    with pytest.raises(BadDataset, match="bad"):
        load(tmp_path, negatives=tmp_path / "bad")


@pytest.mark.parametrize(("values", "rising"), [((0.1, 0.2, 0.3), True), ((0.1, 0.3, 0.2), False)])
def test_a_training_is_complete_once_its_score_decreased(
    values: tuple[float, ...], rising: bool
) -> None:
    scores = iter(values)
    stopping = EarlyStopping(lambda: next(scores))
    assert not any(stopping.over(epoch) for epoch in (1, 2, 3))
    assert stopping.rising is rising
    assert stopping.best == 0.3


def test_beyond_the_neighbours_an_item_keeps_its_plain_weight() -> None:
    rows, _ = shop.checkerboard()
    train = rows.matrix()
    weights = {}
    for neighbours in (3, 10**6):
        model = ItemItem(ridge=20.0, neighbours=neighbours, dense_up_to=10)
        model.fit(train, 1)
        weights[neighbours] = model._weights.toarray()
    plain = ItemItem(ridge=PLAIN_FROM, dense_up_to=10)
    plain.fit(train, 1)
    few, all_of_them, unsolved = weights[3], weights[10**6], plain._weights.toarray()
    solved = ~np.isclose(few, unsolved, rtol=1e-4)
    assert solved.any()
    assert solved.sum(axis=0).max() <= 3
    assert not np.allclose(few, all_of_them)


@pytest.mark.parametrize(("most", "cut"), [(3, False), (4, True)])
def test_a_training_ended_by_the_clock_is_not_complete(most: int, cut: bool) -> None:
    scores = iter((0.1, 0.2, 0.3))
    stopping = EarlyStopping(lambda: next(scores))
    assert not any(stopping.over(epoch) for epoch in (1, 2, 3))
    assert stopping.cut_off(most) is cut
    scores = iter((0.3, 0.2, 0.1))
    over = EarlyStopping(lambda: next(scores), patience=2)
    assert [over.over(epoch) for epoch in (1, 2, 3)] == [False, False, True]
    assert not over.cut_off(most)


def test_without_time_for_the_defaults_no_other_parameters_are_preferred(tmp_path: Path) -> None:
    write(tmp_path, valid=True)
    split = load(tmp_path)
    enough = ModelSearch(split, BenchmarkRequest(tmp_path, "ncf", trials=2, seconds=600.0)).run()
    assert (enough.trials, enough.cut_off) == (2, False)
    short = ModelSearch(split, BenchmarkRequest(tmp_path, "ncf", trials=2, seconds=1e-3)).run()
    assert (short.trials, short.cut_off) == (1, True)
    assert {**short.settings, "seconds": 0} == {**defaults("ncf"), "seconds": 0}


@pytest.mark.parametrize("name", ["ncf", "two_tower"])
def test_a_fit_that_ends_after_its_best_epoch_has_the_weights_of_that_epoch(name: str) -> None:
    train = shop.checkerboard()[0].matrix()
    users = np.arange(train.shape[0])
    small = {"dim": 8, "batch": 64, "sample": 16}

    def fitted(epochs: int, stopping: EarlyStopping | None = None) -> MatrixModel:
        model = make(name, {**defaults(name), **small, "epochs": epochs})
        cast(EpochModel, model).fit(train, 1, stopping)
        return model

    falling = iter((0.1, 0.3, 0.2, 0.1))
    stopping = EarlyStopping(lambda: next(falling))
    kept = fitted(4, stopping).scores(users)
    assert (stopping.best_epochs, stopping.epochs) == (2, 4)
    np.testing.assert_allclose(kept, fitted(2).scores(users), atol=1e-5)
    assert np.abs(kept - fitted(4).scores(users)).max() > 0.01


def write_histories(folder: Path, timestamp: int = 1_600_000_000_000) -> Path:
    """A leave-one-out split as Amazon Reviews 2023 is published: user u-0 has 1, 2, 3, 4, 5."""
    header = "user_id,parent_asin,rating,timestamp,history"

    def line(user: str, item: int, history: str) -> str:
        return f"{user},i-{item},5.0,{timestamp + item},{history}"

    rows = {
        "train": [line("u-0", 2, "i-1"), line("u-0", 3, "i-1 i-2"), line("u-1", 1, "")],
        "valid": [line("u-0", 4, "i-1 i-2 i-3"), line("u-1", 2, "i-1")],
        "test": [line("u-0", 5, "i-1 i-2 i-3 i-4"), line("u-1", 3, "i-1 i-2")],
    }
    for name, lines in rows.items():
        (folder / f"Toys.{name}.csv").write_text("\n".join([header, *lines]))
    return folder


def items_of(rows: Interactions, user: int) -> list[str]:
    """The items of a user in order of time."""
    return [str(item) for item in rows.item_ids[rows.item[rows.user == user]]]


def test_the_official_split_of_amazon_is_read_as_published(tmp_path: Path) -> None:
    split = load(write_histories(tmp_path))
    user = split.train.user_ids.tolist().index("u-0")
    assert items_of(split.train, user) == ["i-1", "i-2", "i-3"]  # i-1 has no row of its own
    assert items_of(split.valid, user) == ["i-4"]
    assert items_of(split.history, user) == ["i-1", "i-2", "i-3", "i-4"]
    assert split.train.item_ids[split.test[user].indices].tolist() == ["i-5"]
    assert split.timed
    answer = run(BenchmarkRequest(tmp_path, "transitions", trials=0))
    assert (answer["timed"], answer["fitted_on"]) == (True, "train")


def test_several_splits_in_a_folder_are_rejected(tmp_path: Path) -> None:
    write_histories(tmp_path)
    (tmp_path / "Books.train.csv").write_text("user_id,parent_asin,rating,timestamp")
    with pytest.raises(BadDataset, match="several splits"):
        load(tmp_path)


def test_seconds_milliseconds_and_dates_are_the_same_times(tmp_path: Path) -> None:
    found = []
    for number, times in enumerate((["86400", "0"], ["1970-01-02", "1970-01-01"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        rows = "\n".join(f"u,i-{n},{time}" for n, time in enumerate(times))
        (folder / "train.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
        (folder / "test.csv").write_text("user_id,item_id\nu,i-1")
        found.append(load(folder).train.time_ms.tolist())
    assert found == [[0, 86_400_000]] * 2
    milliseconds = load(write_histories(tmp_path)).train.time_ms.max()
    assert milliseconds == 1_600_000_000_003


@pytest.mark.parametrize("time", ["soon", ""])
def test_a_row_without_a_time_is_rejected(tmp_path: Path, time: str) -> None:
    (tmp_path / "train.csv").write_text(f"user_id,item_id,timestamp\nu,i,{time}\nu,j,5")
    with pytest.raises(BadDataset, match="timestamp"):
        load(tmp_path)


def test_without_times_the_order_of_a_file_changes_nothing(tmp_path: Path) -> None:
    found = []
    for reverse in (False, True):
        folder = tmp_path / str(reverse)
        folder.mkdir()
        write(folder, valid=True)
        lines = (folder / "train.csv").read_text().splitlines()[1:]
        pairs = [line.rpartition(",")[0] for line in lines]
        ordered = sorted(pairs, reverse=reverse)
        (folder / "train.csv").write_text("\n".join(["user_id,item_id", *ordered]))
        assert not load(folder).timed
        found.append(run(BenchmarkRequest(folder, "transitions", trials=0)))
    for name in ("ndcg@20", "recall@10"):
        assert found[0][name] == pytest.approx(found[1][name], abs=0.02)


def chain(folder: Path, users: int = 90) -> Path:
    """After item n comes n + 1, of 30 in a circle; between train and validation is a leap."""
    rows: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for user in range(users):
        for step, name in [*((n, "train") for n in range(4)), (15, "valid"), (16, "test")]:
            rows[name].append(f"u-{user},i-{(user + step) % 30},{step * 86_400}")
    for name, lines in rows.items():
        (folder / f"{name}.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    return folder


def test_validation_items_are_part_of_the_history_at_the_test(tmp_path: Path) -> None:
    answer = run(BenchmarkRequest(chain(tmp_path), "transitions", trials=0))
    split = load(tmp_path)
    model = make("transitions", defaults("transitions"))
    model.fit(split.train, seed=1)
    without = RankingTask(split.history.matrix(), split.test).measure(model.scores)
    assert answer["ndcg@10"] > 0.9
    assert without["ndcg@10"] < 0.2


def test_the_sequence_model_predicts_what_follows_the_newest_item(tmp_path: Path) -> None:
    split = load(chain(tmp_path))
    small = {"dim": 16, "dropout": 0.1, "rate": 0.01, "epochs": 60}
    model = make("sequence", {**defaults("sequence"), **small})
    model.fit(split.train, seed=1)
    observe(model, split.history)
    found = RankingTask(split.history.matrix(), split.test).measure(model.scores)
    assert found["ndcg@10"] > 0.8
    observe(model, split.history.where(split.history.user > 0))
    scores = model.scores(np.array([0, 1]))  # the first user has no history
    np.testing.assert_allclose(scores[0], scores[0, 0], rtol=1e-5)  # all are equally popular
    assert scores[1].std() > 1.0


def test_refit_also_learns_from_the_validation_rows(tmp_path: Path) -> None:
    request = BenchmarkRequest(chain(tmp_path), "item_item", trials=0, refit=True)
    assert run(request)["fitted_on"] == "train and valid"


class CutOff:
    """A model whose fit ends after two epochs."""

    def fit(self, train: object, seed: int, stopping: EarlyStopping | None = None) -> None:
        assert stopping is not None
        assert not any(stopping.over(epoch) for epoch in (1, 2))

    def scores(self, users: np.ndarray) -> np.ndarray:
        raise NotImplementedError


@pytest.mark.parametrize("values", [(0.1, 0.2), (0.2, 0.1)])  # rising, or in a dip
def test_a_search_ends_when_the_defaults_were_cut_off(
    tmp_path: Path, values: tuple[float, ...]
) -> None:
    scores = iter(values)
    request = BenchmarkRequest(write(tmp_path, valid=True), "ncf", trials=3)
    found = ModelSearch(
        load(request.folder), request, make=lambda *_: CutOff(), score=lambda *_: next(scores)
    ).run()
    assert (found.trials, found.cut_off, found.settings) == (1, True, defaults("ncf"))


@pytest.mark.parametrize("valid", [True, False])
def test_an_interrupted_fit_uses_the_remaining_time(tmp_path: Path, valid: bool) -> None:
    answer = run(BenchmarkRequest(write(tmp_path, valid), "ncf", trials=2, seconds=1e-3))
    assert (answer["trials"], answer["cut_off"]) == (1, True)
    assert answer["recall@20"] > 0.6


class RateModel:
    """A model whose score depends on its learning rate and seed alone."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def fit(self, train: object, seed: int, stopping: EarlyStopping | None = None) -> None:
        assert stopping is not None
        self.seed = seed
        for epoch in range(1, 30):
            if stopping.over(epoch):
                return

    def scores(self, users: np.ndarray) -> np.ndarray:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("seed_effect", "other", "kept"),
    # 2 standard deviations over three seeds: 0.04, then 0.002
    [(0.02, 0.53, True), (0.02, 0.55, False), (0.001, 0.503, False), (0.001, 0.501, True)],
)
def test_defaults_stay_unless_others_are_better_than_by_a_seed(
    tmp_path: Path, seed_effect: float, other: float, kept: bool
) -> None:
    default_rate, first = defaults("ncf")["rate"], BenchmarkRequest.seed

    def score(model: MatrixModel, split: PublishedSplit, request: BenchmarkRequest) -> float:
        assert isinstance(model, RateModel)
        if model.rate != default_rate:
            return other
        return 0.5 + seed_effect * {first: 0, first + 1: 1, first + 2: -1}[model.seed]

    request = BenchmarkRequest(write(tmp_path, valid=True), "ncf", trials=3)
    found = ModelSearch(
        load(request.folder),
        request,
        make=lambda _, settings: RateModel(settings["rate"]),
        score=score,
    ).run()
    assert found.trials == 3
    assert len(found.seed_scores) == 3
    assert (found.settings["rate"] == default_rate) is kept
