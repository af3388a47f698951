"""The dashboard's panel of experiments: it asks the API every few seconds."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import structlog

from afterclick.errors import AfterclickError, BadInput
from ui.api import Api
from ui.components.controls import Age, panel
from ui.components.experiments import Experiments
from ui.experiments import experiment_panel, newest

log = structlog.get_logger()

NONE = "No experiment yet: afterclick experiments create first --arm old:policy=popular --arm new"


class ExperimentsPanel:
    """What runs and what was stopped lately, with results."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def build(self) -> None:
        with panel("Experiments").props("data-panel=experiments"):
            self._age = Age()
            self._experiments = Experiments("Not asked yet.")

    async def refresh(self) -> None:
        """Ask and show; a silent API leaves the panel as it is."""
        try:
            shown = newest((await self._api.get("/experiments"))["experiments"])
            results = await asyncio.gather(
                *(self._api.get(f"/experiments/{quote(one['name'], safe='')}") for one in shown)
            )
        except BadInput as error:
            self._experiments.show([], f"The API does not say: {error}")
        except AfterclickError as error:
            log.info("no experiments", error=str(error))
        else:
            rows = [experiment_panel(one, found) for one, found in zip(shown, results, strict=True)]
            self._experiments.show(rows, NONE)
            self._age.heard()
