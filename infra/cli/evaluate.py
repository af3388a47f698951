"""`afterclick evaluate`, `off-policy`, `benchmark`, `als`: the quality of models, measured
offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli.output import AsJson, choice, emit, progress, progress_bar, table

if TYPE_CHECKING:
    from rich.table import Table

    from afterclick.settings import Settings
    from training.evaluation.als_search import AlsEvaluation
    from training.off_policy import OffPolicyReport

app = typer.Typer()
als_app = typer.Typer(help="Search ALS settings, and compare its engines.", no_args_is_help=True)
Dataset = Annotated[
    Path | None,
    typer.Option(envvar="DATASET", help="A dataset folder or file; else the tables of the ETL."),
]
End = Annotated[str | None, typer.Option(help="Ignore everything from this day on, yyyy-mm-dd.")]
Users = Annotated[int, typer.Option(min=10, help="Maximum of queries per protocol.")]
_METRICS = ("ndcg@20", "recall@20", "hr@20", "f1@20", "ndcg@10", "recall@10", "hr@10", "f1@10")


@app.command()
def evaluate(
    dataset: Dataset = None,
    cut: Annotated[
        str | None,
        typer.Option(
            help="First test day, yyyy-mm-dd. Default: the last start of a month before the newest "
            "5 %."
        ),
    ] = None,
    end: End = None,
    users: Annotated[
        int | None, typer.Option(min=10, help="Maximum of queries per protocol. Default: all.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Models fitted with different seeds; figures are means.")
    ] = 3,
    preset: Annotated[
        str | None,
        typer.Option(help="Model preset, `full` or `fast`. Default: that of the served model."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="ALS by `spark` or by `implicit`. Default: that of the preset."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write a Markdown report with charts.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Also log figures, settings and report to MLflow.")
    ] = False,
    brief: Annotated[
        bool, typer.Option("--brief", help="Also the blend as it ranks under load shedding.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare every model on unseen interactions: a global time split, full ranking."""
    from afterclick.settings import Settings
    from training.evaluation.time_split import EvaluationRequest, run

    request = EvaluationRequest(
        dataset, cut, end, users, seeds, preset, engine, report, record, brief, as_json
    )
    run(Settings(), request)


@app.command("off-policy")
def off_policy(
    policy: Annotated[
        str | None,
        typer.Option(
            help="What orders the lists: blend, trending, popular, als, two_tower, ncf or content. "
            "Default: blend."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A version that was trained here. Default: the served one."),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="A reaction that counts, of `stream.reactions`; repeat. Default: all of them."
        ),
    ] = None,
    decay: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=3,
            help="Items at other ranks count too: rank k is looked at in proportion to "
            "1 / k^DECAY. Default: only items at the same rank count.",
        ),
    ] = None,
    min_support: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the target's items that the log must have offered."
        ),
    ] = 0.8,
    min_ess: Annotated[
        float, typer.Option(min=1, help="Effective number of shown items that is needed.")
    ] = 100.0,
    lists: Annotated[int, typer.Option(min=100, help="Maximum of lists; more are sampled.")] = (
        10_000
    ),
    as_json: AsJson = False,
) -> None:
    """Estimate from lists with exploration what another policy or model would have earned.

    IPS, SNIPS and doubly robust, in reactions per list. Exit code 6 if the log says too little.
    """
    from afterclick.api import Policy
    from afterclick.errors import BadInput
    from afterclick.settings import Settings
    from training.off_policy import OffPolicyRequest, run

    if policy is None and model is None:
        raise BadInput("name what to estimate: --policy, --model or both")
    settings = Settings()
    request = OffPolicyRequest(
        choice("--policy", policy or "blend", tuple(Policy)),
        model,
        tuple(choice("--reward", name, settings.stream.reactions) for name in reward or ()),
        decay,
        min_support,
        min_ess,
        lists,
    )
    report = run(settings, request, progress)
    emit(report.figures(), as_json, lambda: _off_policy_table(report))


@app.command()
def benchmark(
    split: Annotated[
        Path, typer.Option(help="Folder with train.csv, test.csv and optionally valid.csv.")
    ],
    model: Annotated[
        str,
        typer.Option(
            help="popularity, transitions, als, item_item, sequence, two_tower, ncf or auto."
        ),
    ],
    trials: Annotated[
        int, typer.Option(min=0, help="Maximum of settings tried on valid; 0: none.")
    ] = 40,
    seeds: Annotated[int, typer.Option(min=1, help="Fits to average.")] = 1,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 42,
    protocol: Annotated[
        str,
        typer.Option(help="`full` ranks every item, `ncf` each test item among given negatives."),
    ] = "full",
    negatives: Annotated[
        Path | None,
        typer.Option(help="For `ncf`: lines (user,item)<tab>negative…, or CSV user_id,item_id."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Time for the search.")] = 360.0,
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit the measured model on the rows of valid, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fit a model, tune it on the validation rows, rank every item for every user, and measure.

    `--model auto` chooses among all models and mixes them, within the time for the search.
    The files are CSV (or .csv.gz) with the header user_id,item_id[,timestamp[,history]], or those
    of Amazon Reviews 2023 as published. With timestamps the rows of valid are known at the test.
    Without valid.csv a tenth of each user's training rows is used, the newest if there are
    timestamps.
    """
    from afterclick.errors import BadInput
    from training.evaluation.benchmark_models import check
    from training.evaluation.published import BenchmarkRequest, run

    if protocol not in ("full", "ncf"):
        raise BadInput(f"--protocol {protocol!r}: full or ncf")
    if (protocol == "ncf") != (negatives is not None):
        raise BadInput("--protocol ncf and --negatives FILE belong together")
    check(model)
    request = BenchmarkRequest(split, model, trials, seeds, seed, seconds, negatives, refit)
    answer = run(request, progress)
    costs = f"fit {answer['fit_seconds']} s, search {answer['tune_seconds']} s"
    lines = [f"{name:<10} {answer[name]:.4f}" for name in _METRICS]
    emit(answer, as_json, "\n".join([*lines, f"{costs}, {answer['peak_mb']} MB"]))


def _off_policy_table(report: OffPolicyReport) -> Table:
    """A row for the logged lists and each estimator."""
    rows = []
    for name, found in {"logged lists": report.logged, **report.estimates}.items():
        low, high = found.interval
        rows.append((name, f"{found.value:.4f}", f"{low:.4f} to {high:.4f}", f"{found.ess:,.0f}"))
    asked = f"{report.policy} of {report.model}" if report.model else report.policy
    caption = f"{asked}: {report.lists:,} lists of {report.users:,} users, support"
    headings = ("", "reactions per list", "95 % interval", "effective sample")
    return table(headings, rows, f"{caption} {report.support:.0%}")


@als_app.command("search")
def search(
    dataset: Dataset = None,
    cut: Annotated[str | None, typer.Option(help="First day of queries, yyyy-mm-dd.")] = None,
    end: End = None,
    users: Users = 1000,
    trials: Annotated[int, typer.Option(min=1, help="Total of trials, over all calls.")] = 20,
    seconds: Annotated[float, typer.Option(min=1, help="No trial starts after it.")] = 900.0,
    name: Annotated[str, typer.Option(help="The study; the same name continues it.")] = "als",
    as_json: AsJson = False,
) -> None:
    """Search rank, reg and alpha of ALS with Optuna on a time window.

    Each trial is a nested MLflow run. An interrupted search continues with the same call. --end
    keeps a later test period unseen.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn

    from training.evaluation import als_search

    settings, evaluation = _evaluation(dataset, cut, end, users)
    with progress_bar(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task("trials", total=trials)

        def report(done: int, line: str) -> None:
            bar.console.print(line, highlight=False)
            bar.update(task, completed=done)

        answer = als_search.search(
            settings, evaluation, als_search.AlsSearch(name, trials, seconds), report
        )
    best = answer["best"]
    count = f"best of {answer['trials']} ({answer['pruned']} pruned)"
    verdict = "better than" if answer["preferred"] else "not better, beyond the seed, than"
    verdict = f"{verdict} the current settings (margin {answer['margin']:.4f})"
    emit(answer, as_json, f"{count}: {best['params']}, {best['metrics']}; {verdict}")


@als_app.command("engines")
def engines(
    dataset: Dataset = None,
    cut: Annotated[str | None, typer.Option(help="First day of queries, yyyy-mm-dd.")] = None,
    end: End = None,
    users: Users = 2000,
    as_json: AsJson = False,
) -> None:
    """Fit ALS by Spark and by `implicit` with the same settings: seconds, NDCG, hit rate."""
    from training.config import ModelConfig
    from training.evaluation.als_search import compare_engines
    from training.workspace import spark_session

    settings, evaluation = _evaluation(dataset, cut, end, users)
    config = ModelConfig.of(settings).als
    with spark_session(settings) as session:
        answer = compare_engines(session, evaluation, config, progress)
    if as_json:
        emit(answer, as_json)


def _evaluation(
    dataset: Path | None, cut: str | None, end: str | None, users: int
) -> tuple[Settings, AlsEvaluation]:
    from afterclick.settings import Settings
    from training.evaluation.als_search import AlsEvaluation
    from training.evaluation.time_split import split_of

    settings = Settings()
    split, _ = split_of(settings, dataset, cut, end)
    return settings, AlsEvaluation.of(split, users, settings.training.seed)
