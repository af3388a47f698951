"""Small controls made of native elements, so that keyboard and screen reader need nothing added."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui
from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement
from nicegui.events import GenericEventArguments


class Heading(TextElement):
    """A heading of plain text."""

    def __init__(self, text: str, tag: str = "h2") -> None:
        super().__init__(tag=tag, text=text)


class Button(TextElement):
    """A native button."""

    def __init__(self, text: str, on_click: Callable[[], Any]) -> None:
        super().__init__(tag="button", text=text)
        self.props("type=button").classes("ac-button")
        self.on("click", on_click, args=[])


class Segments(Element, component="segments.js"):
    """A row of buttons of which one is chosen; calls `on_pick(key)`."""

    def __init__(
        self, label: str, options: Mapping[str, str], value: str, on_pick: Callable[[str], Any]
    ) -> None:
        super().__init__()
        self._props["label"] = label
        self._props["options"] = [{"key": key, "name": name} for key, name in options.items()]
        self._props["value"] = value

        def pick(event: GenericEventArguments) -> Any:
            self._props["value"] = event.args["key"]
            self.update()
            return on_pick(event.args["key"])

        self.on("pick", pick)


class Age(Element, component="age.js"):
    """How long ago something was heard; the browser counts, so that a silent server shows."""

    def __init__(self) -> None:
        super().__init__()
        self._props["beat"] = 0

    def heard(self) -> None:
        """It is new."""
        self.show(self._props["beat"] + 1)

    def show(self, beat: int) -> None:
        """It is new if `beat` is another than before; of 0 nothing has been heard yet."""
        self._props["beat"] = beat
        self.update()


def panel(title: str) -> Element:
    """A panel with a heading; build its content inside."""
    section = ui.element("section").classes("ac-panel")
    with section:
        Heading(title)
    return section
