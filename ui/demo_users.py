"""The toy users of the shop: a name, a story, tastes.

reads   file  ui/demo_users.json
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from pydantic import BaseModel, ConfigDict, TypeAdapter


class DemoUser(BaseModel):
    """Somebody to try the shop as. `tastes` are names of categories, broad to narrow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user_id: str
    name: str
    story: str
    tastes: tuple[str, ...]


_USERS = TypeAdapter(tuple[DemoUser, ...])


@cache
def demo_users() -> tuple[DemoUser, ...]:
    """Everybody in demo_users.json."""
    return _USERS.validate_json(files("ui").joinpath("demo_users.json").read_bytes())


def demo_user(user_id: str) -> DemoUser | None:
    """The toy user of this id, if it is one."""
    return next((user for user in demo_users() if user.user_id == user_id), None)
