"""The content of the admin panels and of the experiments panel, without a browser."""

from __future__ import annotations

from typing import Any

from ui.pages.admin_panels import (
    faults_view,
    models_view,
    reconcile_view,
    registry_changed,
    training_view,
)
from ui.pages.experiments_panel import experiment_view, newest


def console(**jobs: Any) -> dict[str, Any]:
    return {"training": None, "jobs": jobs, "stack": None, "fault_injection": True, "faults": []}


def job(state: str = "done", **more: Any) -> dict[str, Any]:
    base = {
        "state": state,
        "progress": "",
        "answer": None,
        "error": None,
        "ended": 1.0,
        "seconds": 2.0,
    }
    return {**base, **more}


def model(version: str, aliases: list[str], served: bool, **metrics: float) -> dict[str, Any]:
    return {"version": version, "aliases": aliases, "served": served, "metrics": metrics}


def test_models_are_ordered_by_role_with_the_best_metric_marked() -> None:
    models = [
        model("m3", ["challenger"], False, **{"live.ndcg@10": 0.03}),
        model("m2", ["champion"], True, **{"live.ndcg@10": 0.05}),
        model("m1", ["previous"], False, **{"live.ndcg@10": 0.04}),
    ]
    panel = models_view(console(models=job(answer={"models": models, "decisions": []})))
    assert [(c["role"], c["version"]) for c in panel["columns"]] == [
        ("champion", "m2"),
        ("previous", "m1"),
        ("challenger", "m3"),
    ]
    assert [c["best"] for c in panel["columns"]] == [["live.ndcg@10"], [], []]
    assert [c["promotable"] for c in panel["columns"]] == [False, True, True]
    assert panel["canRollBack"]
    assert panel["listed"]


def test_the_served_model_is_the_champion_even_if_its_alias_lags() -> None:
    models = [model("m2", [], True), model("m1", ["champion"], False)]
    panel = models_view(console(models=job(answer={"models": models, "decisions": []})))
    assert [(c["role"], c["version"]) for c in panel["columns"]] == [("champion", "m2")]


def test_a_refused_challenger_cannot_be_promoted() -> None:
    refused = {
        "version": "c9",
        "passed": False,
        "verdict": "refused",
        "reason": "worse",
        "metrics": {"live.ndcg@10": 0.01},
    }
    answer = {"models": [model("m1", ["champion"], True)], "decisions": [refused]}
    panel = models_view(console(models=job(answer=answer)))
    challenger = panel["columns"][1]
    assert (challenger["role"], challenger["promotable"], challenger["status"]) == (
        "challenger",
        False,
        "refused",
    )
    assert panel["decisions"] == [
        {"version": "c9", "passed": False, "verdict": "refused", "reason": "worse"}
    ]


def test_a_training_of_another_process_is_shown() -> None:
    scheduled = {
        **console(),
        "training": {"state": "training", "progress": "fitting", "last": None},
    }
    assert training_view(scheduled) == {
        "running": True,
        "words": "Training",
        "progress": "fitting",
    }
    started = console(train=job("running", progress="begins"))
    assert training_view(started)["running"]
    ended = {
        **console(),
        "training": {"state": "stopped", "progress": "", "last": "20260101 is the champion"},
    }
    assert training_view(ended)["progress"] == "last: 20260101 is the champion"


def test_the_registry_is_read_again_after_a_change() -> None:
    assert not registry_changed(console())
    assert registry_changed(console(train=job(ended=5.0)))
    assert registry_changed(console(models=job(ended=4.0), promote=job(ended=5.0)))
    assert not registry_changed(console(models=job(ended=6.0), promote=job(ended=5.0)))
    assert not registry_changed(console(models=job("running", ended=None), promote=job(ended=5.0)))
    scheduled = {
        "state": "waiting",
        "since": "1970-01-01T00:00:05+00:00",
        "last": "m2 is the champion",
    }
    assert registry_changed({**console(models=job(ended=4.0)), "training": scheduled})
    assert not registry_changed({**console(models=job(ended=6.0)), "training": scheduled})
    assert not registry_changed(
        {**console(models=job(ended=4.0)), "training": {**scheduled, "last": None}}
    )
    running = {**scheduled, "state": "training"}
    assert not registry_changed({**console(models=job(ended=4.0)), "training": running})


def test_the_recount_shows_its_differences() -> None:
    report = {
        "differences": 0,
        "events": 1200,
        "users": 3,
        "items": 4,
        "duplicates": 50,
        "lost": 0,
        "double": 0,
        "seconds": 1.5,
    }
    proof = reconcile_view(job(answer=report))
    assert (proof["state"], proof["words"]) == ("done", "0 differences")
    assert "50 duplicate events refused" in proof["more"]
    assert (
        reconcile_view(job("failed", answer={**report, "differences": 2}))["words"]
        == "2 differences"
    )
    assert (
        reconcile_view(job("failed", error="Kafka is unavailable"))["more"]
        == "Kafka is unavailable"
    )
    assert reconcile_view(None)["state"] == ""


def test_services_are_shown_without_their_process_ids() -> None:
    parts = [{"name": "stream", "state": "restarting", "pid": 7, "restarts": 1}]
    assert faults_view({**console(), "stack": parts})["parts"] == [
        {"name": "stream", "state": "restarting", "restarts": 1}
    ]


def estimate(low: float, high: float) -> dict[str, float]:
    return {"value": (low + high) / 2, "low": low, "high": high}


def arm(name: str, difference: dict[str, float] | None, decision: str | None) -> dict[str, Any]:
    return {
        "name": name,
        "policy": "blend",
        "share": 0.5,
        "users": 100,
        "lists": 400,
        "fallback_lists": 7,
        "conversion": 0.06,
        "clicks_per_user": 1.25,
        "clicks_per_list": 0.3125,
        "difference": difference,
        "p_value": None if difference is None else 0.0123,
        "decision": decision,
    }


def experiment(name: str, stopped: str | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "created": "2026-01-02T03:04:05Z",
        "stopped": stopped,
        "traffic": 0.5,
        "note": "",
    }


def view(
    difference: dict[str, float] | None,
    decision: str | None = "open",
    metric: str = "conversion",
    **changed: Any,
) -> dict[str, Any]:
    broken = decision is None
    results = {
        "name": "e",
        "running": True,
        "metric": metric,
        "days": 7,
        "planned_users": 1000,
        "level": 0.95,
        "arms": [arm("old", None, None), arm("new", difference, decision) | changed],
        "sample_ratio": {"p_value": 0.0001 if broken else 0.5, "broken": broken},
    }
    return experiment_view(experiment("e"), results)


def test_an_arm_shows_the_reactions_that_the_stream_counts() -> None:
    results = {
        "running": True,
        "metric": "conversion",
        "days": 7,
        "planned_users": 1000,
        "level": 0.95,
        "arms": [arm("old", None, None), arm("new", None, None)],
        "sample_ratio": {"p_value": 0.5, "broken": False},
    }
    rows = [{"arm": "new", "lists": 30, "reacted": n} for n in (4, 11)]
    old, new = experiment_view(experiment("e"), results, rows)["arms"]
    assert new["others"].endswith("reactions to 25.0 % of 60 lists")
    assert "reactions" not in old["others"]


def test_an_experiment_shows_its_plan_and_each_arm_next_to_the_control() -> None:
    shown = view(estimate(0.01, 0.03), "better")
    old, new = shown["arms"]
    assert shown["plan"] == (
        "share of buyers in the 7 days after a user's first list; "
        "100 of 1,000 users in the smallest arm"
    )
    assert shown["when"] == "running since 2026-01-02 03:04, 50% of the users"
    assert (old["difference"], old["decision"], old["bar"]) == ("control", "", None)
    assert new["decision"] == "better"
    assert new["difference"] == "+2.00 (+1.00 to +3.00) points, p 0.012"
    assert new["bar"] == {"low": 66.67, "value": 83.33, "high": 100.0}
    assert (new["mean"], new["fallbacks"]) == ("6.0 %", "7")
    assert new["others"] == "1.250 clicks per user, 0.312 clicks per list"


def test_clicks_are_shown_as_a_mean() -> None:
    new = view(estimate(-0.25, 0.75), metric="clicks_per_user")["arms"][1]
    assert (new["mean"], new["decision"]) == ("1.250", "open")
    assert new["difference"] == "+0.250 (-0.250 to +0.750), p 0.012"
    assert new["bar"] == {"low": 33.33, "value": 66.67, "high": 100.0}
    assert new["others"] == "6.0 % share of buyers, 0.312 clicks per list"


def test_a_sample_ratio_mismatch_hides_the_difference() -> None:
    shown = view(estimate(0.01, 0.03), None)
    assert shown["broken"]
    assert shown["ratio"].startswith("Sample ratio mismatch")
    assert (shown["arms"][1]["decision"], shown["arms"][1]["difference"]) == ("", "-")


def test_without_users_there_are_no_figures() -> None:
    shown = view(None, users=0)
    new = shown["arms"][1]
    assert (new["mean"], new["others"], new["difference"], new["bar"]) == ("", "", "-", None)
    assert shown["plan"].endswith("0 of 1,000 users in the smallest arm")


def test_running_experiments_come_first_and_newest_first() -> None:
    experiments = [
        experiment("a"),
        experiment("b", "2026-01-03"),
        experiment("c"),
        experiment("d", "2026-01-04"),
    ]
    assert [e["name"] for e in newest(experiments)] == ["c", "a", "d", "b"]
    assert len(newest(experiments * 3)) == 4
