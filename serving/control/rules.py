"""Business rules on the items of a catalogue query.

reads, writes  sql  rules

boost    adds `amount` to the score
bury     subtracts `amount` from the score
pin      places the items from rank `position` on, highest-trending first
exclude  removes the items from every list

The snapshot holds the rules in force as item indices: a request evaluates no query.
"""

from __future__ import annotations

from collections.abc import Sequence
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

from afterclick.arrays import Float64Array
from afterclick.events import PRINTABLE, Id, new_id, now, printable
from afterclick.retrieval import top_k
from serving.control.store import readable
from serving.control.store import rules as table
from serving.state.catalogue_query import Condition, matching_items
from serving.state.item_catalogue import Catalogue
from serving.state.snapshot import NO_RULES, ActiveRules, ItemLookup, Pin


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("is outside the supported range of dates") from None


MAX_FORCED = 100
"""Boosted items that are forced candidates: the highest-trending ones."""
MAX_PINNED = 20
"""Items of one pin rule."""
Text = Annotated[
    str,
    StringConstraints(max_length=500),
    AfterValidator(printable),
    Field(json_schema_extra={"pattern": PRINTABLE}),
]
Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


def _only_with(field: str, *actions: str) -> dict[str, Any]:
    """JSON Schema: `field` is null except for these actions."""
    fits = {"properties": {"action": {"enum": list(actions)}}}
    return {"anyOf": [fits, {"properties": {field: {"type": "null"}}}]}


class RuleAction(StrEnum):
    """What a rule does to the items of its query."""

    BOOST = "boost"
    BURY = "bury"
    PIN = "pin"
    EXCLUDE = "exclude"


class RuleDraft(BaseModel):
    """A new rule."""

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
        None, description="Boost and bury: change of the score; 1 by default."
    )
    position: Annotated[int, Field(ge=1, le=200)] | None = Field(
        None, description="Pin: the rank, from 1; 1 by default."
    )
    starts: Moment | None = Field(None, description="In force from then on; now by default.")
    ends: Moment | None = Field(None, description="In force until then; no end by default.")
    note: Text = ""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.amount is not None and self.action not in (RuleAction.BOOST, RuleAction.BURY):
            raise ValueError(f"a {self.action} rule has no amount")
        if self.position is not None and self.action is not RuleAction.PIN:
            raise ValueError(f"a {self.action} rule has no position")
        if self.starts and self.ends and self.ends <= self.starts:
            raise ValueError("ends must be after starts")
        return self


class Rule(RuleDraft):
    """A stored rule."""

    rule_id: Id
    created: AwareDatetime

    @classmethod
    def of(cls, draft: RuleDraft) -> Self:
        """A rule with a new id and the defaults of its action."""
        values = draft.model_dump(exclude={"rule_id", "created"})
        if draft.action in (RuleAction.BOOST, RuleAction.BURY) and draft.amount is None:
            values["amount"] = 1.0
        if draft.action is RuleAction.PIN and draft.position is None:
            values["position"] = 1
        return cls(**values, rule_id=new_id()[:12], created=now())

    def applies(self, at: datetime) -> bool:
        """Whether the rule applies at this time."""
        return (self.starts is None or self.starts <= at) and (self.ends is None or at < self.ends)


def read_rules(connection: Connection) -> tuple[Rule, ...]:
    """Every rule, oldest first."""
    rows = connection.execute(select(table).order_by(table.c.created, table.c.rule_id)).mappings()
    return tuple(readable(Rule, rows))


def add_rule(connection: Connection, rule: Rule) -> None:
    """Store a rule."""
    connection.execute(insert(table), [{**rule.model_dump(), "action": str(rule.action)}])


def remove_rule(connection: Connection, rule_id: str) -> bool:
    """Delete a rule; False if it does not exist."""
    return bool(connection.execute(delete(table).where(table.c.rule_id == rule_id)).rowcount)


class RuleBook:
    """Turns the rules in force into item indices."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.rules: tuple[Rule, ...] = ()

    def state(self) -> tuple[str, ...]:
        """Ids of the rules in force now."""
        at = datetime.now(UTC)
        return tuple(rule.rule_id for rule in self.rules if rule.applies(at))

    def active(self, lookup: ItemLookup, trend_score: Float64Array) -> ActiveRules:
        """The rules in force for the items of a snapshot; `trend_score` (m,) orders them."""
        in_force = set(self.state())
        rules = [rule for rule in self.rules if rule.rule_id in in_force]
        return _active(rules, self._catalogue, lookup, trend_score) if rules else NO_RULES


def _active(
    rules: Sequence[Rule], catalogue: Catalogue, lookup: ItemLookup, trend_score: Float64Array
) -> ActiveRules:
    excluded = np.zeros(lookup.count, bool)
    amounts = np.zeros(lookup.count)
    pins: dict[int, int] = {}
    for rule in rules:
        items = matching_items(catalogue, rule.query, lookup)
        if rule.action is RuleAction.EXCLUDE:
            excluded[items] = True
        elif rule.action is RuleAction.PIN:
            pinned = items[top_k(trend_score[items], MAX_PINNED)]
            _pin(pins, (rule.position or 1) - 1, pinned.tolist())
        else:
            amounts[items] += (rule.amount or 1.0) * (1 if rule.action is RuleAction.BOOST else -1)
    boosted, gaining = np.flatnonzero(amounts), np.flatnonzero(amounts > 0)
    highest = gaining[top_k(trend_score[gaining], MAX_FORCED)].tolist()
    return ActiveRules(
        excluded=np.flatnonzero(excluded).astype(np.int32),
        boosted=boosted.astype(np.int32),
        amounts=amounts[boosted],
        pins=tuple(Pin(rank, item) for rank, item in sorted(pins.items()) if not excluded[item]),
        forced=np.fromiter(dict.fromkeys((*pins.values(), *highest)), np.int32),
    )


def _pin(pins: dict[int, int], rank: int, items: Sequence[int]) -> None:
    """Give each item the first free rank from `rank` on; an older rule keeps its ranks."""
    for item in items:
        if item in pins.values():
            continue
        while rank in pins:
            rank += 1
        pins[rank] = item
