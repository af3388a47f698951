"""`afterclick replay-serving`, `value-of-freshness`: the log in order of time through the serving
code."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli.output import AsJson, choice, emit, progress, table

if TYPE_CHECKING:
    from rich.table import Table

    from afterclick.settings import Settings
    from infra.prequential.replay_window import ReplayRequest

app = typer.Typer()
Dataset = Annotated[
    Path | None,
    typer.Option(envvar="DATASET", help="A dataset folder or file; else the tables of the ETL."),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="First day, yyyy-mm-dd; the first model knows what came before. Default: 60 days "
        "before the newest event.",
    ),
]
To = Annotated[
    str | None, typer.Option("--to", help="Ignore everything from this day on, yyyy-mm-dd.")
]
Limit = Annotated[
    int, typer.Option("--queries", min=1, help="Maximum of lists of each kind; more are sampled.")
]
Preset = Annotated[str, typer.Option(help="Model preset, `full` or `fast`.")]
Engine = Annotated[
    str | None,
    typer.Option(help="ALS by `spark` or by `implicit`. Default: that of the preset."),
]
AskFor = Annotated[
    str,
    typer.Option(
        "--ask",
        help="Lists before `every` positive event on a new item, or the queries `live` of "
        "`evaluate`.",
    ),
]


@app.command("replay-serving")
def replay_serving(
    dataset: Dataset = None,
    from_day: From = None,
    to_day: To = None,
    queries: Limit = 10_000,
    retrain: Annotated[
        str,
        typer.Option(
            help="After the first model, train `never`, `weekly` or `daily`; `published`: the "
            "models in the home folder, each from its creation on."
        ),
    ] = "never",
    preset: Preset = "fast",
    engine: Engine = None,
    ask: AskFor = "every",
    graph: Annotated[
        str,
        typer.Option(help="The transition graph: `live`, updated with every event, or `static`."),
    ] = "live",
    as_json: AsJson = False,
) -> None:
    """Replay the log through the serving code, and score its lists by what users took next.

    Each list is made from what was known then: state, trends and model. Exit code 1 if a list knew
    its future.
    """
    from afterclick.settings import Settings
    from infra.prequential.past_models import Retrain
    from infra.prequential.replay_figures import replay_figures
    from infra.prequential.replay_window import run
    from infra.prequential.serving_replay import Arm

    began, settings = time.perf_counter(), Settings()
    is_live = choice("--graph", graph, ("live", "static")) == "live"
    arm = Arm(choice("--retrain", retrain, tuple(Retrain)), live_graph=is_live)
    request = _request(dataset, (from_day, to_day), queries, (preset, engine), ask)
    window, walk = run(settings, request, [arm], progress)
    figures = replay_figures(window, walk, arm) | _origin(settings, request, began)
    figures["graph"] = graph
    emit(figures, as_json, lambda: _replay_table(figures))
    if figures["leaks"]:
        raise typer.Exit(1)


@app.command("value-of-freshness")
def value_of_freshness(
    dataset: Dataset = None,
    from_day: From = None,
    to_day: To = None,
    queries: Limit = 10_000,
    retrain: Annotated[
        list[str] | None,
        typer.Option(
            help="A schedule to compare: `never`, `weekly` or `daily`; repeat. Default: all. The "
            "delays are measured with the first."
        ),
    ] = None,
    preset: Preset = "fast",
    engine: Engine = None,
    ask: AskFor = "every",
    figure: Annotated[
        Path | None, typer.Option(help="Also draw the curve: a file .png, .svg or .pdf.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what a delay of users' states, and models that are trained less often, cost.

    The same lists as by `replay-serving`, with the user's state 0 s, 1 s, 1 min, 10 min, 1 h and
    1 day old, and with models trained never, weekly and daily. Daily training takes long: it fits
    a model for each day.
    """
    from afterclick.settings import Settings
    from infra.prequential.past_models import SCHEDULES
    from infra.prequential.replay_figures import (
        DELAYS_S,
        draw,
        freshness_figures,
        require_figure_name,
    )
    from infra.prequential.replay_window import run
    from infra.prequential.serving_replay import Arm

    began, settings = time.perf_counter(), Settings()
    if figure is not None:
        require_figure_name(figure)
    schedules = [choice("--retrain", name, SCHEDULES) for name in retrain or SCHEDULES]
    base = schedules[0]
    arms = [Arm(base, delay) for delay in DELAYS_S] + [Arm(name) for name in schedules]
    request = _request(dataset, (from_day, to_day), queries, (preset, engine), ask)
    window, walk = run(settings, request, list(dict.fromkeys(arms)), progress)
    figures = freshness_figures(window, walk, base) | _origin(settings, request, began)
    if figure is not None:
        progress(f"figure: {draw(figures, figure)}")
    emit(figures, as_json, lambda: _freshness_table(figures))
    if figures["leaks"]:
        raise typer.Exit(1)


def _request(
    dataset: Path | None,
    days: tuple[str | None, str | None],
    queries: int,
    recipe: tuple[str, str | None],
    ask: str,
) -> ReplayRequest:
    from infra.prequential.replay_window import Ask, ReplayRequest

    asked = choice("--ask", ask, tuple(Ask))
    return ReplayRequest(dataset, *days, queries, *recipe, asked)


def _origin(settings: Settings, request: ReplayRequest, began: float) -> dict[str, Any]:
    """How the lists were made."""
    from training.config import ModelConfig

    config = ModelConfig.of(settings, request.preset, request.engine)
    return {
        "preset": request.preset,
        "recipe": config.preset_values(),
        "ask": str(request.ask),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _replay_table(figures: dict[str, Any]) -> Table:
    """A row for all lists, each tier and each day."""
    everything = {"tier": "all", **figures}
    rows = [
        (
            row.get("tier") or row.get("day"),
            f"{row['queries']:,}",
            *(f"{row[name]:.4f}" for name in ("hr@10", "ndcg@10", "coverage@10")),
        )
        for row in (everything, *figures["by_tier"], *figures["by_day"])
    ]
    low, high = figures["hr@10_interval"]
    caption = (
        f"HR@10 between {low:.4f} and {high:.4f} (95 %); {len(figures['model_versions'])} models, "
        f"{figures['leaks']} leaks"
    )
    return table(("", "lists", "HR@10", "NDCG@10", "coverage@10"), rows, caption)


def _freshness_table(figures: dict[str, Any]) -> Table:
    """A row for each delay and each schedule."""
    named = [(f"state {row['delay_s']:g} s old", row) for row in figures["delays"]]
    named += [(f"trained {row['name']}", row) for row in figures["retraining"]]
    rows = [
        (
            name,
            f"{row['hr@10']:.4f}",
            _between(row["interval"]),
            f"{row['difference']:+.4f}",
            _between(row["difference_interval"]),
            f"{row['ndcg@10']:.4f}",
        )
        for name, row in named
    ]
    caption = (
        f"{figures['queries']:,} lists of {figures['users']:,} users; delays with models trained "
        f"{figures['delays_retrain']}; {figures['leaks']} leaks"
    )
    headings = ("", "HR@10", "95 % interval", "difference", "95 % interval", "NDCG@10")
    return table(headings, rows, caption)


def _between(interval: list[float]) -> str:
    low, high = interval
    return f"{low:.4f} to {high:.4f}"
