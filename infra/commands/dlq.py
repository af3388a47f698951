"""`afterclick dlq`: the records that could not be read."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Dead letters: records that could not be read.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def ls(as_json: AsJson = False) -> None:
    """How many dead letters there are, per topic and error."""
    import orjson

    from afterclick.settings import Settings
    from streaming.proof.dead_letters import count_by_error, read_dead_letters

    found = count_by_error(read_dead_letters(Settings().kafka))
    if as_json:
        typer.echo(orjson.dumps(found))
        return
    for topic, errors in found.items():
        for error, number in errors.most_common():
            typer.echo(f"{topic:12} {number:8,}  {error}")
    if not found:
        typer.echo("no dead letters")


@app.command()
def show(newest: Annotated[int, typer.Option(help="How many of each topic.")] = 10) -> None:
    """The newest dead letters: where they stood, why they were refused, and their bytes."""
    from collections import deque

    from afterclick.settings import Settings
    from streaming.proof.dead_letters import DeadLetter, read_dead_letters

    last: dict[str, deque[DeadLetter]] = {}
    for letter in read_dead_letters(Settings().kafka):
        last.setdefault(letter.topic, deque(maxlen=newest)).append(letter)
    for letter in (letter for letters in last.values() for letter in letters):
        typer.echo(f"{letter.topic}/{letter.partition}/{letter.offset}  {letter.error}")
        typer.echo(f"    key {letter.key!r}  value {(letter.value or b'')[:300]!r}")


@app.command()
def redrive(
    containing: Annotated[str, typer.Option(help="Only those whose error contains this.")] = "",
    as_json: AsJson = False,
) -> None:
    """Send dead letters to their topics again, from where the last redrive stopped."""
    import orjson

    from afterclick.settings import Settings
    from streaming.proof.dead_letters import redrive as send_again

    sent = send_again(Settings().kafka, containing)
    typer.echo(orjson.dumps({"sent": sent}) if as_json else f"sent {sent:,} again")
