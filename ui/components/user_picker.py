"""Who is shopping: the toy users, someone new, or any user id."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from nicegui.element import Element
from nicegui.events import GenericEventArguments

from ui.artwork import face
from ui.demo_users import DemoUser


class UserPicker(Element, component="user_picker.js"):
    """Calls `on_pick(user_id)`; an empty id means someone new."""

    def __init__(
        self, people: tuple[DemoUser, ...], on_pick: Callable[[str], Awaitable[None]]
    ) -> None:
        super().__init__()
        self._props["people"] = [
            {"id": person.user_id, "name": person.name, "story": person.story, **face(person.name)}
            for person in people
        ]
        self._props["current"] = {"id": "", "name": "", "story": ""}

        async def pick(event: GenericEventArguments) -> None:
            await on_pick(event.args["user_id"])

        self.on("pick", pick)

    def show(self, user_id: str, name: str, story: str) -> None:
        current = {"id": user_id, "name": name, "story": story, **face(name)}
        if current != self._props["current"]:
            self._props["current"] = current
            self.update()
