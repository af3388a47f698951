"""The demo users of the shop: a name, a story and tastes.

reads   file  ui/demo_users.json
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from pydantic import BaseModel, ConfigDict, TypeAdapter


class DemoUser(BaseModel):
    """A user to try the shop with. `tastes` are category names, broad to narrow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user_id: str
    name: str
    story: str
    tastes: tuple[str, ...]


_USERS = TypeAdapter(tuple[DemoUser, ...])


@cache
def demo_users() -> tuple[DemoUser, ...]:
    """All demo users."""
    return _USERS.validate_json(files("ui").joinpath("demo_users.json").read_bytes())


def demo_user(user_id: str) -> DemoUser | None:
    """The demo user with this id, or None."""
    return next((user for user in demo_users() if user.user_id == user_id), None)
