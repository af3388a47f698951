"""What the administrator's panels say, without a browser."""

from __future__ import annotations

from typing import Any

from ui.operations import break_panel, models_panel, proof_words, registry_changed, training_words


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


def test_models_stand_in_the_order_of_their_roles_with_the_best_figure_marked() -> None:
    models = [
        model("m3", ["challenger"], False, **{"live.ndcg@10": 0.03}),
        model("m2", ["champion"], True, **{"live.ndcg@10": 0.05}),
        model("m1", ["previous"], False, **{"live.ndcg@10": 0.04}),
    ]
    panel = models_panel(console(models=job(answer={"models": models, "decisions": []})))
    assert [(c["role"], c["version"]) for c in panel["columns"]] == [
        ("champion", "m2"),
        ("previous", "m1"),
        ("challenger", "m3"),
    ]
    assert [c["best"] for c in panel["columns"]] == [["live.ndcg@10"], [], []]
    assert [c["promotable"] for c in panel["columns"]] == [False, True, True]
    assert panel["canRollBack"]
    assert panel["listed"]


def test_what_the_topic_serves_is_the_champion_though_an_alias_lags() -> None:
    models = [model("m2", [], True), model("m1", ["champion"], False)]
    panel = models_panel(console(models=job(answer={"models": models, "decisions": []})))
    assert [(c["role"], c["version"]) for c in panel["columns"]] == [("champion", "m2")]


def test_a_refused_candidate_is_a_challenger_that_cannot_be_promoted() -> None:
    refused = {
        "version": "c9",
        "passed": False,
        "reason": "worse",
        "metrics": {"live.ndcg@10": 0.01},
    }
    answer = {"models": [model("m1", ["champion"], True)], "decisions": [refused]}
    panel = models_panel(console(models=job(answer=answer)))
    challenger = panel["columns"][1]
    assert (challenger["role"], challenger["promotable"], challenger["why"]) == (
        "challenger",
        False,
        "refused",
    )
    assert panel["decisions"] == [{"version": "c9", "passed": False, "reason": "worse"}]


def test_a_training_is_told_whoever_started_it() -> None:
    scheduled = {
        **console(),
        "training": {"state": "training", "progress": "fitting", "last": None},
    }
    assert training_words(scheduled) == {
        "running": True,
        "words": "Training",
        "progress": "fitting",
    }
    started_here = console(train=job("running", progress="begins"))
    assert training_words(started_here)["running"]
    ended = {
        **console(),
        "training": {"state": "stopped", "progress": "", "last": "20260101 is the champion"},
    }
    assert training_words(ended)["progress"] == "the last one: 20260101 is the champion"


def test_the_registry_is_asked_again_once_something_has_changed_it() -> None:
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


def test_the_proof_counts_its_differences() -> None:
    found = {
        "differences": 0,
        "events": 1200,
        "users": 3,
        "items": 4,
        "duplicates": 50,
        "lost": 0,
        "double": 0,
        "seconds": 1.5,
    }
    proof = proof_words(job(answer=found))
    assert (proof["state"], proof["words"]) == ("done", "0 differences")
    assert "50 resent events refused" in proof["more"]
    assert (
        proof_words(job("failed", answer={**found, "differences": 2}))["words"] == "2 differences"
    )
    assert proof_words(job("failed", error="Kafka is away"))["more"] == "Kafka is away"
    assert proof_words(None)["state"] == ""


def test_the_parts_of_the_stack_are_named_without_their_process_ids() -> None:
    parts = [{"name": "stream", "state": "restarting", "pid": 7, "restarts": 1}]
    assert break_panel({**console(), "stack": parts})["parts"] == [
        {"name": "stream", "state": "restarting", "restarts": 1}
    ]
