"""Drawers: the receipt of an item, and the calls behind the screen. Native dialogs, closed by Escape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from nicegui.element import Element

from afterclick.arrays import Json
from ui.snippets import Snippet


class ReceiptDrawer(Element, component="receipt_drawer.js"):
    """Shows what `receipt.receipt` says."""

    def __init__(self) -> None:
        super().__init__()
        self._props["receipt"] = None

    def show(self, receipt: Json) -> None:
        """Open the drawer."""
        self._props["receipt"] = receipt
        self.run_method("open")
        self.update()

    def replace(self, receipt: Json) -> None:
        """Say more of the item that is shown; of another one it says nothing."""
        shown = self._props["receipt"]
        if shown and shown["item_id"] == receipt["item_id"]:
            self._props["receipt"] = receipt
            self.update()


class SnippetDrawer(Element, component="snippet_drawer.js"):
    """Shows calls to copy."""

    def __init__(self) -> None:
        super().__init__()
        self._props["snippets"] = []

    def show(self, snippets: Sequence[Snippet]) -> None:
        self._props["snippets"] = [asdict(snippet) for snippet in snippets]
        self.run_method("open")
        self.update()
