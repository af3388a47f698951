"""Business rules: what people decide about lists, beside what the model finds.

boost    the items of a query gain `amount` in score
bury     they lose it
pin      they stand from place `position` on, in the order of the query, hottest first beyond it
exclude  they are in no list

`ServingSnapshot` carries the rules in force as item indices, so that a request looks nothing up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Self

import numpy as np
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from sqlalchemy import Connection, delete, insert, select

from afterclick.arrays import Float64Array, IntArray
from afterclick.events import PRINTABLE, Id, new_id, now, printable
from serving.control.store import readable
from serving.control.tables import rules as table
from serving.state.catalogue_query import Condition, matching
from serving.state.item_catalogue import Catalogue
from serving.state.snapshot import NO_RULES, ActiveRules, Pin


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies outside the calendar") from None


MOST_BOOSTED = 100
"""Boosted items that join the candidates of a list, the hottest first."""
MOST_PINNED = 20
Text = Annotated[
    str,
    StringConstraints(max_length=500),
    AfterValidator(printable),
    Field(json_schema_extra={"pattern": PRINTABLE}),
]
Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


def _only_with(field: str, *actions: str) -> dict[str, Any]:
    """JSON Schema: `field` is null but for these actions."""
    fits = {"properties": {"action": {"enum": list(actions)}}}
    return {"anyOf": [fits, {"properties": {field: {"type": "null"}}}]}


class RuleAction(StrEnum):
    """What a rule does to the items of its query."""

    BOOST = "boost"
    BURY = "bury"
    PIN = "pin"
    EXCLUDE = "exclude"


class RuleDraft(BaseModel):
    """A rule as it is asked for."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [{"action": "boost", "query": ["brand:Sony"], "amount": 2.0}],
            "allOf": [_only_with("amount", "boost", "bury"), _only_with("position", "pin")],
        },
    )

    action: RuleAction
    query: Annotated[list[Condition], Field(min_length=1, max_length=50)] = Field(
        description="Conditions FIELD:VALUE; fields are item, category, brand, title, price."
    )
    amount: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | None = Field(
        None, description="Boost and bury: what the score gains or loses; 1 by default."
    )
    position: Annotated[int, Field(ge=1, le=200)] | None = Field(
        None, description="Pin: the place, from 1; 1 by default."
    )
    starts: Moment | None = Field(None, description="In force from then on; at once by default.")
    ends: Moment | None = Field(None, description="In force until then; for ever by default.")
    note: Text = ""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.amount is not None and self.action not in (RuleAction.BOOST, RuleAction.BURY):
            raise ValueError(f"a rule that says {self.action} has no amount")
        if self.position is not None and self.action is not RuleAction.PIN:
            raise ValueError(f"a rule that says {self.action} has no position")
        if self.starts and self.ends and self.ends <= self.starts:
            raise ValueError("ends before it starts")
        return self


class Rule(RuleDraft):
    """A rule as it is kept."""

    rule_id: Id
    created: AwareDatetime

    @classmethod
    def of(cls, draft: RuleDraft) -> Self:
        """A new rule with its own id, and the defaults of its action filled in."""
        values = draft.model_dump(exclude={"rule_id", "created"})
        if draft.action in (RuleAction.BOOST, RuleAction.BURY) and draft.amount is None:
            values["amount"] = 1.0
        if draft.action is RuleAction.PIN and draft.position is None:
            values["position"] = 1
        return cls(**values, rule_id=new_id()[:12], created=now())

    def holds(self, at: datetime) -> bool:
        return (self.starts is None or self.starts <= at) and (self.ends is None or at < self.ends)


def read_rules(connection: Connection) -> tuple[Rule, ...]:
    """Every rule, the oldest first. One that this program cannot read is left out, and said to be."""
    rows = connection.execute(select(table).order_by(table.c.created, table.c.rule_id)).mappings()
    return tuple(readable(Rule, rows))


def add_rule(connection: Connection, rule: Rule) -> None:
    """Keep a rule."""
    connection.execute(insert(table), [{**rule.model_dump(), "action": str(rule.action)}])


def remove_rule(connection: Connection, rule_id: str) -> bool:
    """Forget a rule; whether there was one."""
    return bool(connection.execute(delete(table).where(table.c.rule_id == rule_id)).rowcount)


class RuleBook:
    """Turns the rules in force into item indices."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.rules: tuple[Rule, ...] = ()

    def state(self) -> tuple[str, ...]:
        """Ids of the rules in force now."""
        at = datetime.now(UTC)
        return tuple(rule.rule_id for rule in self.rules if rule.holds(at))

    def active(self, index: dict[str, int], trend_score: Float64Array) -> ActiveRules:
        """The rules in force for the items of `index`; `trend_score` (m,) orders them."""
        in_force = set(self.state())
        rules = [rule for rule in self.rules if rule.rule_id in in_force]
        return _active(rules, self._catalogue, index, trend_score) if rules else NO_RULES


def _active(
    rules: Sequence[Rule], catalogue: Catalogue, index: dict[str, int], trend_score: Float64Array
) -> ActiveRules:
    excluded: dict[int, None] = {}
    amounts: dict[int, float] = {}
    pins: dict[int, int] = {}
    for rule in rules:
        known = (index.get(item_id) for item_id in matching(catalogue, rule.query))
        items = [i for i in known if i is not None and i < len(trend_score)]
        if rule.action is RuleAction.EXCLUDE:
            excluded.update(dict.fromkeys(items))
        elif rule.action is RuleAction.PIN:
            items.sort(key=lambda item: -trend_score[item])
            _pin(pins, (rule.position or 1) - 1, items[:MOST_PINNED])
        else:
            sign = 1.0 if rule.action is RuleAction.BOOST else -1.0
            for item in items:
                amounts[item] = amounts.get(item, 0.0) + sign * (rule.amount or 1.0)
    amounts = {item: amount for item, amount in amounts.items() if amount}
    gaining = [item for item, amount in amounts.items() if amount > 0]
    highest = sorted(gaining, key=lambda item: -trend_score[item])[:MOST_BOOSTED]
    boosted = np.array(sorted(amounts), np.int32)
    return ActiveRules(
        excluded=_indices(excluded),
        boosted=boosted,
        amounts=np.array([amounts[item] for item in boosted.tolist()]),
        pins=tuple(Pin(rank, item) for rank, item in sorted(pins.items()) if item not in excluded),
        forced=_indices(dict.fromkeys((*pins.values(), *highest))),
    )


def _pin(pins: dict[int, int], rank: int, items: Sequence[int]) -> None:
    """Give each item the first free rank from `rank` on; an older rule keeps its ranks."""
    for item in items:
        if item in pins.values():
            continue
        while rank in pins:
            rank += 1
        pins[rank] = item


def _indices(items: Iterable[int]) -> IntArray:
    return np.fromiter(items, np.int32)
