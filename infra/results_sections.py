"""The figures of docs/results.md: what the page shows of each command's output, with its bars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One row of the page: a value of the output, and its bar where it has one."""

    label: str
    path: str
    """Keys of nested objects, separated by dots; a number indexes a list."""
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    def bar(self) -> str:
        if self.at_most is not None:
            return f"≤ {self.at_most:,g} {self.unit}".strip()
        return "" if self.at_least is None else f"≥ {self.at_least:,g} {self.unit}".strip()

    def met(self, value: float) -> str:
        if self.at_most is None and self.at_least is None:
            return ""
        low, high = self.at_least, self.at_most
        return "yes" if (low is None or value >= low) and (high is None or value <= high) else "no"


@dataclass(frozen=True)
class Cases:
    """A table with a row per case: an object of a list, or a named object of an object."""

    path: str
    """Key of the cases in the output."""
    columns: tuple[str, ...]
    """Keys of a case; `name` is the key of a named object."""

    def lines(self, output: dict[str, Any]) -> list[str]:
        cases = output[self.path]
        if isinstance(cases, dict):
            cases = [{"name": name, **(case or {})} for name, case in cases.items()]
        head = " | ".join(column.replace("_", " ") for column in self.columns)
        rows = (
            " | ".join(_cell(case.get(column, "")) for column in self.columns) for case in cases
        )
        return ["", f"| {head} |", "|" + "---|" * len(self.columns), *(f"| {r} |" for r in rows)]


@dataclass(frozen=True)
class Section:
    """The results of one command."""

    title: str
    figures: tuple[Figure, ...]
    tables: tuple[Cases, ...] = ()


def _cell(value: object) -> str:
    """A number, or the text of a cell."""
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "/")


SECTIONS: dict[str, Section] = {
    "freshness": Section(
        "Freshness: `POST /feedback` to the pushed list",
        (
            Figure("p50", "push_ms.p50", "ms", at_most=8),
            Figure("p99, hand-overs included", "push_ms.p99", "ms", at_most=100),
            Figure("p99.9", "push_ms.p999", "ms", at_most=300),
            Figure(
                "median, compared with micro-batches", "times_micro_batch_p50", "times", at_least=40
            ),
        ),
    ),
    "ingest": Section(
        "Ingest: Kafka to Redis, exactly once",
        (
            Figure("events per second", "events_per_s", at_least=15_000),
            Figure(
                "compared with a writer without guarantees", "times_naive", "times", at_least=2.5
            ),
            Figure("memory of Redis per event", "redis_bytes_per_event", "bytes", at_most=150),
            Figure("events per second, replay producer", "producer_events_per_s", at_least=100_000),
            Figure("differences found by `reconcile`", "reconcile_differences", at_most=0),
        ),
    ),
    "serve": Section(
        "Serving: 60,000 items, 300 requests per second",
        (
            Figure("p50", "p50_ms", "ms", at_most=2),
            Figure("p99", "p99_ms", "ms", at_most=10),
            Figure("requests per second at saturation", "max_rps", at_least=1_200),
            Figure("compared with plain FastAPI", "times_plain", "times", at_least=1.5),
            Figure("wrong or late answers", "errors", at_most=0),
            Figure("p50 of fresh lists", "fresh.p50_ms", "ms", at_most=2),
            Figure("p99 of fresh lists", "fresh.p99_ms", "ms", at_most=10),
            Figure("fresh lists per second at saturation", "fresh.max_rps", at_least=1_200),
            Figure("CPU of a fresh list", "fresh.cpu_ms_per_request", "ms", at_most=1),
            Figure(
                "CPU of a fresh list of commit 0317a04, compared with ours",
                "baseline.ratio.cpu_ms_per_request",
                "times",
                at_least=3.5,
            ),
        ),
    ),
    "million": Section(
        "Serving: a million items, 300 requests per second",
        (
            Figure("p50 of fresh lists", "fresh.p50_ms", "ms"),
            Figure("p99 of fresh lists", "fresh.p99_ms", "ms", at_most=25),
            Figure("CPU of a fresh list", "fresh.cpu_ms_per_request", "ms"),
            Figure("memory of the API", "fresh.rss_mb", "MB", at_most=2_500),
            Figure("wrong or late answers", "errors", at_most=0),
        ),
    ),
    "workers": Section(
        "Serving: two workers, 60,000 items",
        (
            Figure("requests per second at saturation", "max_rps"),
            Figure("fresh lists per second at saturation", "fresh.max_rps"),
            Figure("memory of a further worker, loaded", "worker_mb", "MB", at_most=150),
            Figure("memory of a further worker after load", "worker_mb_after_load", "MB"),
            Figure("wrong or late answers", "errors", at_most=0),
        ),
    ),
    "swap": Section(
        "Model swaps under load",
        (
            Figure("p99 compared with the time before", "times_quiet_p99", "times", at_most=2),
            Figure("errors", "errors", at_most=0),
        ),
    ),
    "degrade": Section(
        "Degradation: Redis, Kafka, model and SQL fail in turn",
        (
            Figure("worst p99 of lists", "worst_p99_ms", "ms", at_most=300),
            Figure("slowest recovery", "worst_recovery_s", "s", at_most=15),
            Figure("errors", "errors", at_most=0),
        ),
    ),
    "retrain": Section(
        "Retraining under load",
        (
            Figure("training due after", "due_after_s", "s"),
            Figure("new model served after", "served_after_s", "s"),
            Figure("p99 of lists during the run", "p99_ms", "ms"),
            Figure("errors", "errors", at_most=0),
        ),
    ),
    "gate": Section(
        "Release gate: simulated challengers, 16,000 questions",
        (
            Figure("refused, of those 10 % worse", "refused_at_minus_10", at_least=0.95),
            Figure("promoted, of equal ones", "promoted_at_0", at_least=0.8),
            Figure("relative loss shown with 80 %", "detectable_loss"),
        ),
    ),
    "replay_serving": Section(
        "Replay through the serving code: lists before the events of the last 60 days",
        (
            Figure("lists", "queries"),
            Figure("HR@10", "hr@10"),
            Figure("NDCG@10", "ndcg@10"),
            Figure("share of the items shown", "coverage@10"),
            Figure("lists that knew their future", "leaks", at_most=0),
            Figure("time", "seconds", "s", at_most=900),
        ),
        (Cases("by_tier", ("tier", "queries", "hr@10", "ndcg@10", "coverage@10")),),
    ),
    "value_of_freshness": Section(
        "Value of freshness: older user states, and models trained more often",
        (
            Figure("lists", "queries"),
            Figure("HR@10, state without delay", "delays.0.hr@10"),
            Figure("lists that knew their future", "leaks", at_most=0),
        ),
        (
            Cases("delays", ("delay_s", "hr@10", "difference", "ndcg@10")),
            Cases("retraining", ("name", "models", "hr@10", "difference", "ndcg@10")),
        ),
    ),
    "ui": Section(
        "Dashboard: click to painted list",
        (
            Figure("p50", "click_to_screen_ms.p50", "ms"),
            Figure("p95", "click_to_screen_ms.p95", "ms", at_most=150),
            Figure("first paint, p95", "first_paint_ms.p95", "ms", at_most=1_500),
        ),
    ),
    "poison": Section(
        "Push attacks on the trends of new visitors, moments that no choice has seen",
        (
            Figure(
                "gain of the target, new accounts",
                "trending.unseen.worst.new_accounts.target_gain",
                at_most=0.05,
            ),
            Figure("change of NDCG@10 without an attack", "trending.unseen.rows.1.ndcg_change"),
            Figure(
                "change of NDCG@10, worst attack by new accounts",
                "trending.unseen.worst.new_accounts.ndcg_change",
                at_least=-0.01,
            ),
            Figure(
                "the same at the moments of the choice",
                "trending.tuned.worst.new_accounts.ndcg_change",
                at_least=-0.01,
            ),
            Figure(
                "gain of the target, 3 % new or backdated accounts",
                "trending.unseen.three_percent.target_gain",
                at_most=0.01,
            ),
            Figure(
                "loss of NDCG@10 by that attack, compared with the guarded list",
                "trending.unseen.three_percent.ndcg_loss",
                at_most=0.01,
            ),
            Figure(
                "ranks lost by an item with 60 votes, 1,000 skips", "skips.ranks_lost", at_most=0
            ),
            Figure(
                "the same if accounts are as old as they say", "skips.ranks_lost_without_guards"
            ),
            Figure(
                "gain of the target, accounts that wait two weeks",
                "trending.unseen.worst.aged_accounts.target_gain",
            ),
        ),
    ),
    "faults": Section(
        "Faults: every case with a control that fails without the protection",
        (
            Figure("lost events", "lost", at_most=0),
            Figure("events counted twice", "double", at_most=0),
            Figure("every case passed, and every control failed", "passed", at_least=1),
        ),
        (Cases("cases", ("name", "kills", "events", "lost", "double", "recovery_s", "note")),),
    ),
    "hostile": Section(
        "Hostile clients: lists of a genuine client meanwhile",
        (
            Figure("worst p99 of the genuine client", "worst_others_p99_ms", "ms", at_most=100),
            Figure("largest growth of the API", "worst_rss_growth_mb", "MiB", at_most=150),
            Figure("errors of the genuine client", "others_errors", at_most=0),
            Figure("answers with status 500", "errors_500", at_most=0),
        ),
        (
            Cases(
                "cases",
                (
                    *("name", "requests", "refused", "others_p99_ms_before"),
                    *("others_p99_ms_during", "rss_mb_before", "rss_mb_after"),
                ),
            ),
        ),
    ),
    "served-lists": Section(
        "Served lists: expected clicks by a ranker that learns from them (simulated users)",
        (
            Figure("simulated users of each shop", "shoppers"),
            Figure("more than by next items alone", "over.control.lift_percent", "%"),
            Figure("lower end of the 95 % interval", "over.control.low_percent", "%", at_least=0),
            Figure("more than by the first model", "over.frozen.lift_percent", "%"),
            Figure("lower end of the 95 % interval", "over.frozen.low_percent", "%", at_least=0),
        ),
        (
            Cases(
                "rounds",
                (
                    *("round", "learner_ctr_percent", "control_ctr_percent"),
                    *("frozen_ctr_percent", "lift_percent", "low_percent", "high_percent"),
                ),
            ),
        ),
    ),
    "loop": Section(
        "Event loop of the API: the longest that a request keeps it from others",
        (
            Figure("items", "items"),
            Figure("longest CPU time of the loop without a pause", "longest_ms", "ms", at_most=20),
            Figure("responses other than 200", "errors", at_most=0),
        ),
        (Cases("kinds", ("name", "requests", "loop_ms_p50", "longest_ms")),),
    ),
    "soak": Section(
        "Soak: a whole stack under traffic, kills, trainings and erasures",
        (
            Figure("minutes", "minutes"),
            Figure("events", "events"),
            Figure("lost events", "lost", at_most=0),
            Figure("events counted twice", "double", at_most=0),
            Figure("kills", "kills"),
            Figure("trainings", "retrainings"),
            Figure("erasures", "erasures"),
            Figure("slowest recovery from a kill", "worst_recovery_s", "s"),
            Figure(
                "growth of a process that is certain (lower end of its interval)",
                "worst_rss_slope_low",
                "MiB/h",
                at_most=20,
            ),
        ),
        (
            Cases("rss_slope_mb_per_hour", ("name", "slope", "low", "high")),
            Cases("disk_slope_mb_per_hour", ("name", "slope", "low", "high")),
        ),
    ),
}


QUALITY = Section(
    "Quality: HR@10 of the blend, on a global time split",
    (
        Figure("live", "models.blend.live.hr@10", at_least=0.085),
        Figure(
            "live, compared with decayed popularity",
            "blend.times_decayed_popularity",
            "times",
            at_least=1.9,
        ),
        Figure("live, targets of the same day", "models.blend.live_same_day.hr@10"),
        Figure("live, targets of a later day", "models.blend.live_later.hr@10", at_least=0.07),
        Figure("returning", "models.blend.returning.hr@10", at_least=0.081),
        Figure("cold", "models.blend.cold.hr@10", at_least=0.042),
        Figure("value of the live event", "freshness.blend.parts.live_event.hr@10"),
        Figure("value of fresh trends", "freshness.blend.parts.trends.hr@10"),
        Figure("loss of a state that is not updated", "freshness.blend.parts.staleness.hr@10"),
    ),
)
