"""`afterclick rules`: boost, bury, pin and exclude."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.commands.db import upgraded_database

if TYPE_CHECKING:
    from serving.control.rules import Rule

app = typer.Typer(help="Business rules: boost, bury, pin, exclude.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DATES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]


class Action(StrEnum):
    """What a rule does."""

    BOOST = "boost"
    BURY = "bury"
    PIN = "pin"
    EXCLUDE = "exclude"


@app.command()
def ls(as_json: Json = False) -> None:
    """Every rule, the oldest first, and whether it is in force."""
    from serving.control.rules import read_rules

    with upgraded_database().begin() as connection:
        rules = read_rules(connection)
    if as_json:
        _json({"rules": [_row(rule) for rule in rules]})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("rule", "does", "items", "from", "until", "in force", "note")
    for rule in rules:
        how = rule.amount if rule.amount is not None else rule.position
        table.add_row(
            rule.rule_id,
            f"{rule.action} {'' if how is None else f'{how:g}'}".strip(),
            "\n".join(rule.query),
            *(f"{at:%Y-%m-%d %H:%M}" if at else "" for at in (rule.starts, rule.ends)),
            "yes" if rule.holds(datetime.now(UTC)) else "",
            rule.note,
        )
    Console().print(table)


@app.command()
def add(
    action: Annotated[Action, typer.Argument(help="What to do with the items.")],
    query: Annotated[
        list[str],
        typer.Argument(help="Which items: FIELD:VALUE on item, category, brand, title, price."),
    ],
    amount: Annotated[
        float | None, typer.Option(help="boost, bury: by how much, in score.")
    ] = None,
    position: Annotated[int | None, typer.Option(help="pin: at which place, from 1.")] = None,
    starts: Annotated[
        datetime | None,
        typer.Option(formats=DATES, help="In force from then on (UTC); at once by default."),
    ] = None,
    ends: Annotated[
        datetime | None,
        typer.Option(formats=DATES, help="In force until then (UTC); for ever by default."),
    ] = None,
    note: Annotated[str, typer.Option(help="Why, for those who find it later.")] = "",
    as_json: Json = False,
) -> None:
    """Add a rule, as in `afterclick rules add boost brand:Sony price:..50 --amount 2`.

    Running APIs take it up in seconds.
    """
    from pydantic import ValidationError

    from afterclick.errors import BadInput
    from serving.control.rules import Rule, RuleDraft, add_rule

    given = {
        "action": str(action),
        "query": query,
        "amount": amount,
        "position": position,
        "starts": starts and starts.replace(tzinfo=UTC),
        "ends": ends and ends.replace(tzinfo=UTC),
        "note": note,
    }
    try:
        rule = Rule.of(RuleDraft.model_validate(given))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise BadInput(" ".join((*map(str, problem["loc"]), problem["msg"]))) from None
    with upgraded_database().begin() as connection:
        add_rule(connection, rule)
    if as_json:
        _json(_row(rule))
    else:
        typer.echo(f"rule {rule.rule_id}: {rule.action} {' '.join(rule.query)}")


@app.command()
def rm(rule_id: Annotated[str, typer.Argument(help="The rule's id, as `ls` shows it.")]) -> None:
    """Remove a rule."""
    from afterclick.errors import NotFound
    from serving.control.rules import remove_rule

    with upgraded_database().begin() as connection:
        if not remove_rule(connection, rule_id):
            raise NotFound(f"no rule {rule_id}: `afterclick rules ls` shows them")
    typer.echo(f"rule {rule_id} is gone")


def _row(rule: Rule) -> dict[str, Any]:
    return {**rule.model_dump(), "in_force": rule.holds(datetime.now(UTC))}


def _json(value: dict[str, Any]) -> None:
    import orjson

    typer.echo(orjson.dumps(value))
