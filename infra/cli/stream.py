"""`afterclick stream`, `reconcile`, `rebuild`, `forget`, `dlq`: the stream job and its state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli.output import AsJson, emit, stop_signals

if TYPE_CHECKING:
    from streaming.proof.reconcile import Reconciliation

app = typer.Typer()
dlq_app = typer.Typer(help="Dead letters: records that cannot be decoded.", no_args_is_help=True)


@app.command()
def stream() -> None:
    """Run the stream job: Kafka events to state in Redis and the event archive. Ends on SIGTERM."""
    from afterclick.settings import Settings
    from streaming import job

    with stop_signals() as stop:
        job.run(Settings(), stop)


@app.command()
def reconcile(
    wait: Annotated[
        float, typer.Option("--wait", help="Seconds to wait until the stream has caught up.")
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Recount the Kafka log and compare Redis with it. Exit code 1 if anything differs."""
    from afterclick.settings import Settings
    from streaming.proof.reconcile import reconcile as compare

    report = compare(Settings(), wait)
    emit(report, as_json, lambda: _report(report))
    if report.differences:
        raise typer.Exit(1)


@app.command()
def rebuild(as_json: AsJson = False) -> None:
    """Rebuild the state from the event archive. Stop the stream first; it continues from there."""
    from afterclick.settings import Settings
    from streaming.proof.rebuild import rebuild as run

    rebuilt = run(Settings())
    emit(rebuilt, as_json, f"{rebuilt.events:,} events, at {rebuilt.positions}")


@app.command()
def forget(
    user_id: Annotated[str, typer.Argument(help="The user whose past events are erased.")],
    as_json: AsJson = False,
) -> None:
    """Erase a user from Redis, the log, SQL, caches and the next model; no replay restores them.

    A running stream job does it, also if this command is interrupted; without one, this command
    does. The API processes erase what they have within seconds, or when they start. Kafka keeps
    its records until their retention ends.
    """
    from afterclick.settings import Settings
    from streaming.proof.forget_requests import forget as erase

    erased = erase(Settings(), user_id)
    lines = [
        f"{erased.events:,} events retracted",
        f"{erased.rows:,} rows of the event archive erased",
    ]
    if erased.remaining:
        lines.append(f"the counts of {erased.remaining:,} events remain, without a user")
    emit(erased, as_json, "\n".join(lines))


@dlq_app.command()
def ls(as_json: AsJson = False) -> None:
    """Count dead letters per topic and error."""
    from afterclick.settings import Settings
    from streaming.proof.dead_letters import count_by_error, read_dead_letters

    counts = count_by_error(read_dead_letters(Settings().kafka))
    lines = [
        f"{topic:12} {number:8,}  {error}"
        for topic, errors in counts.items()
        for error, number in errors.most_common()
    ]
    emit(counts, as_json, "\n".join(lines) or "no dead letters")


@dlq_app.command()
def show(newest: Annotated[int, typer.Option(help="How many of each topic.")] = 10) -> None:
    """Show the newest dead letters: position, error, key and value."""
    from collections import deque

    from afterclick.settings import Settings
    from streaming.proof.dead_letters import DeadLetter, read_dead_letters

    last: dict[str, deque[DeadLetter]] = {}
    for letter in read_dead_letters(Settings().kafka):
        last.setdefault(letter.topic, deque(maxlen=newest)).append(letter)
    for letter in (letter for letters in last.values() for letter in letters):
        typer.echo(f"{letter.topic}/{letter.partition}/{letter.offset}  {letter.error}")
        typer.echo(f"    key {letter.key!r}  value {(letter.value or b'')[:300]!r}")


@dlq_app.command()
def redrive(
    containing: Annotated[str, typer.Option(help="Only those whose error contains this.")] = "",
    as_json: AsJson = False,
) -> None:
    """Send dead letters to their topics again, from where the last redrive stopped."""
    from afterclick.settings import Settings
    from streaming.proof.dead_letters import redrive as send_again

    sent = send_again(Settings().kafka, containing)
    emit({"sent": sent}, as_json, f"sent {sent:,} again")


def _report(report: Reconciliation) -> str:
    if report.cause:
        return report.cause
    lines = [
        f"{report.events:,} records up to the positions ({report.behind:,} behind the end), "
        f"{report.duplicates:,} duplicates, {report.poison:,} poison, {report.users:,} users, "
        f"{report.items:,} items, {report.seconds:.1f} s",
        f"counted   state {report.counted_in_state:,}   log {report.counted_in_log:,}",
        f"uniques   state {report.uniques_in_state:,}   log {report.uniques_in_log:,}",
    ]
    lines += [f"{e.where}: state {e.state[:200]}, log {e.log[:200]}" for e in report.examples]
    return "\n".join([*lines, f"{report.differences:,} differences {dict(report.by_kind) or ''}"])
