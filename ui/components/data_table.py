"""A small table of facts."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui.element import Element


class DataTable(Element, component="data_table.js"):
    """Shows rows of text under `columns`; `marked` rows stand out; `empty` is said where there is none."""

    def __init__(self, label: str, columns: Sequence[str], empty: str) -> None:
        super().__init__()
        self._props["label"] = label
        self._props["columns"] = list(columns)
        self._props["empty"] = empty
        self._props["rows"] = []
        self._props["marked"] = []

    def show(self, rows: Sequence[Sequence[str]], marked: Sequence[int] = ()) -> None:
        self._props["rows"] = [list(row) for row in rows]
        self._props["marked"] = list(marked)
        self.update()
