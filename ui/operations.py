"""What the panels of an administrator show, from what GET /admin/console answers."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from afterclick.arrays import Json

ROLES = ("champion", "previous", "challenger")
SHOWN_METRICS = 8
SHOWN_DECISIONS = 5
WAITING = {"models": "asking the registry", "promote": "changing the model that is served"}


def models_panel(console: Json) -> Json:
    """Champion, previous and challenger beside each other, the gate's decisions, the training that runs."""
    jobs: Json = console["jobs"]
    known: Json = (jobs.get("models") or {}).get("answer") or {}
    decisions = known.get("decisions") or []
    chosen = _chosen(known.get("models") or [], decisions)
    metrics = _shared_metrics(chosen)
    return {
        "training": training_words(console),
        "metrics": metrics,
        "columns": [_column(model, metrics, chosen) for model in chosen],
        "decisions": [
            {"version": d["version"], "passed": d["passed"], "reason": d["reason"]}
            for d in decisions[:SHOWN_DECISIONS]
        ],
        "busy": next((WAITING[name] for name in WAITING if _runs(jobs, name)), ""),
        "error": next(
            (jobs[n]["error"] for n in ("promote", "train", "models") if _failed(jobs, n)), ""
        ),
        "listed": bool(known),
        "canRollBack": any("previous" in model["roles"] for model in chosen),
    }


def registry_changed(console: Json) -> bool:
    """Whether a training, whoever started it, or a promotion has ended since the registry was asked last."""
    jobs: Json = console["jobs"]
    if _runs(jobs, "models"):
        return False
    asked = (jobs.get("models") or {}).get("ended")
    ended = [
        jobs[name]["ended"] for name in ("promote", "train") if (jobs.get(name) or {}).get("ended")
    ]
    status: Json = console.get("training") or {}
    if asked is not None and status.get("last") and status["state"] != "training":
        ended.append(datetime.fromisoformat(status["since"]).timestamp())
    return any(asked is None or time > asked for time in ended)


def training_words(console: Json) -> Json:
    """What training does, whoever started it."""
    status, job = console.get("training") or {}, console["jobs"].get("train") or {}
    if status.get("state") == "training" or job.get("state") == "running":
        return {
            "running": True,
            "words": "Training",
            "progress": status.get("progress") or job["progress"],
        }
    waits = status.get("state") == "waiting"
    last = status.get("last") or ""
    return {
        "running": False,
        "words": "Waits for the next training" if waits else "No training runs",
        "progress": f"the last one: {last}" if last else "",
    }


def break_panel(console: Json) -> Json:
    """The faults that were made, the parts of the stack, and what the recount says."""
    parts = console.get("stack") or []
    return {
        "allowed": console["fault_injection"],
        "parts": [{name: part[name] for name in ("name", "state", "restarts")} for part in parts],
        "done": console["faults"][:5],
        "proof": proof_words(console["jobs"].get("reconcile")),
    }


def proof_words(job: Json | None) -> Json:
    """The state of the recount: how many differences, over how much."""
    if job is None:
        return {"state": "", "words": "", "more": ""}
    if job["state"] == "running":
        more = "the replay and the simulator stand still meanwhile"
        return {
            "state": "running",
            "words": "Recounting the log",
            "more": f"{job['seconds']:.0f} s, {more}",
        }
    found = job["answer"]
    if not found:
        return {"state": "failed", "words": "No recount", "more": job["error"] or ""}
    differences = found["differences"]
    return {
        "state": "failed" if differences else "done",
        "words": f"{differences:,} differences",
        "more": f"over {found['events']:,} events of {found['users']:,} users and {found['items']:,} items; "
        f"{found['duplicates']:,} resent events refused, {found['lost']:,} lost, "
        f"{found['double']:,} counted twice; in {found['seconds']:.1f} s",
    }


def _chosen(models: Iterable[Json], decisions: Iterable[Json]) -> list[Json]:
    """The models that have a role, in the order of ROLES; a refused candidate is a challenger, too."""
    rows = []
    for model in models:
        roles = [alias for alias in model["aliases"] if alias != "champion"]
        if model["served"]:
            roles = ["champion"]
        rows.append({**model, "roles": roles, "registered": True})
    if not any("challenger" in row["roles"] for row in rows):
        registered = {row["version"] for row in rows}
        refused = (d for d in decisions if d["version"] not in registered)
        rows += [{**d, "roles": ["challenger"], "registered": False} for d in list(refused)[:1]]
    found = [next((row for row in rows if role in row["roles"]), None) for role in ROLES]
    return [
        {**row, "role": role} for role, row in zip(ROLES, found, strict=True) if row is not None
    ]


def _shared_metrics(models: Iterable[Json]) -> list[str]:
    names = dict.fromkeys(name for model in models for name in model["metrics"])
    return sorted(names, key=lambda name: ("@10" not in name, name))[:SHOWN_METRICS]


def _column(model: Json, metrics: list[str], others: list[Json]) -> Json:
    mine = model["metrics"]
    best = [
        name
        for name in metrics
        if name in mine
        and len(others) > 1
        and mine[name] >= max(o["metrics"].get(name, 0.0) for o in others)
    ]
    serves = model["role"] == "champion"
    return {
        "version": model["version"],
        "role": model["role"],
        "metrics": [f"{mine[name]:.4f}" if name in mine else "-" for name in metrics],
        "best": best,
        "promotable": model["registered"] and not serves,
        "why": "serves" if serves else "refused",
    }


def _runs(jobs: Json, name: str) -> bool:
    return (jobs.get(name) or {}).get("state") == "running"


def _failed(jobs: Json, name: str) -> bool:
    return (jobs.get(name) or {}).get("state") == "failed"
