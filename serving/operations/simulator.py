"""The shopper simulator as a child of the API: start, steer, stop.

runs    `afterclick simulate --steered`, which shops by this API as anybody would
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import orjson

from afterclick.arrays import Json
from afterclick.errors import AlreadyRunning, NotRunning
from serving.operations.children import LAST_WORDS, Child

ROUNDS = 1_000_000
"""Enough rounds of visits to go on until it is stopped."""


class Simulator:
    """At most one run of the simulator."""

    def __init__(self, environment: Mapping[str, str], api_url: str) -> None:
        self._environment, self._api_url = environment, api_url
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._plan: Json = {}
        self._figures: Json = {}
        self._said = ""
        self._runs = 0

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    def start(self, shoppers: int, pause_s: float, drift: float, hot: tuple[str, ...]) -> None:
        """Let so many shoppers shop. Raises AlreadyRunning."""
        with self._lock:
            if self.running:
                raise AlreadyRunning("shoppers shop already: stop them first")
            self._runs += 1
            self._plan = {
                "shoppers": shoppers,
                "pause_s": pause_s,
                "drift": drift,
                "hot": list(hot),
            }
            self._figures, self._said = {}, ""
            options = (
                "--shoppers",
                str(shoppers),
                "--visits",
                str(ROUNDS),
                "--pause",
                str(pause_s),
            )
            hotter = [word for item_id in hot for word in ("--hot", item_id)]
            arguments = ("simulate", "--steered", *options, "--drift", str(drift), *hotter)
            where = ("--api-url", self._api_url, "--seed", str(self._runs))
            self._child = Child([*arguments, *where], self._environment, self._hear)

    def steer(self, drift: float | None = None, hot: tuple[str, ...] | None = None) -> None:
        """Change what may change while they shop. Raises NotRunning where nobody does."""
        changes = {"drift": drift, "hot": None if hot is None else list(hot)}
        given = {name: value for name, value in changes.items() if value is not None}
        self._tell(given)
        self._plan |= given

    def hold(self, held: bool) -> None:
        """Nobody begins a visit while held. Does nothing where nobody shops."""
        if self.running:
            self._tell({"held": held})

    def stop(self) -> None:
        """End it, if it runs. Blocks for seconds."""
        if self._child is not None and self.running:
            self._child.stop()

    def as_json(self) -> Json:
        """How it goes, or how the last run went."""
        return {
            "running": self.running,
            "plan": self._plan,
            "figures": self._figures,
            "said": self._said,
        }

    def _tell(self, steering: Json) -> None:
        if self._child is None or not self.running:
            raise NotRunning("nobody shops: start the simulator first")
        self._child.tell(orjson.dumps(steering).decode())

    def _hear(self, name: str, line: str) -> None:
        if name == "err":
            self._said = line.strip()[:LAST_WORDS] or self._said
            return
        try:
            self._figures = orjson.loads(line)
        except orjson.JSONDecodeError:
            self._said = line[:LAST_WORDS]
