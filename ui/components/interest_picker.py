"""What somebody new likes: categories to choose from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nicegui.element import Element
from nicegui.events import GenericEventArguments


class InterestPicker(Element, component="interest_picker.js"):
    """Calls `on_change(chosen)` with the chosen categories each time one is added or taken away."""

    def __init__(self, on_change: Callable[[tuple[str, ...]], Any]) -> None:
        super().__init__()
        self.show((), ())

        def change(event: GenericEventArguments) -> Any:
            return on_change(tuple(event.args["chosen"]))

        self.on("change", change)

    def show(self, categories: Sequence[str], chosen: Sequence[str]) -> None:
        """Offer categories; an empty offer hides the picker."""
        self._props["categories"] = list(categories)
        self._props["chosen"] = list(chosen)
        self.update()
