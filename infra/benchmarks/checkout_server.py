"""A shop and its API of another checkout, for `bench serve --baseline`.

Run as a script by that checkout's Python, so that `infra` is that checkout's:

    python -P checkout_server.py FOLDER ITEMS USERS CHANGES_PER_S

Prints the API's port and process id as JSON, then serves until SIGTERM. Knows the two layouts that
the benchmarks have had.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

CACHE_OFF = {
    "infra.benchmarks": "AFTERCLICK_SERVING__CACHE_TTL_S",
    "infra.benches": "AFTERCLICK_SERVING__REMEMBER_S",
}
"""Package → the setting that is 0 without a response cache."""


def main() -> None:
    folder, items, users, changes_per_s = sys.argv[1:]
    os.chdir(folder)
    sys.path.insert(0, folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    is_current = find_spec("infra.benchmarks") is not None
    os.environ[CACHE_OFF["infra.benchmarks" if is_current else "infra.benches"]] = "0"
    serve = _current if is_current else _before
    with serve(int(items), int(users), float(changes_per_s)) as (port, pid):
        print(json.dumps({"port": port, "pid": pid}), flush=True)
        signal.pause()


@contextmanager
def _current(items: int, users: int, changes_per_s: float) -> Iterator[tuple[int, int]]:
    harness = import_module("infra.benchmarks.harness")
    synthetic = import_module("infra.benchmarks.synthetic")
    settings = import_module("afterclick.settings").Settings()
    with harness.own_servers(settings) as servers:
        own = servers.settings
        shop = synthetic.build_shop(own, items, users)
        traffic = harness.ShopTraffic(own, shop).running(changes_per_s)
        with traffic, harness.served_shop(own, shop.described) as api:
            yield api.port, api.process.pid


@contextmanager
def _before(items: int, users: int, changes_per_s: float) -> Iterator[tuple[int, int]]:
    """Of commits up to November 2026, such as 0317a04."""
    served = import_module("infra.benches.served")
    servers_module = import_module("infra.benches.servers")
    synthetic = import_module("infra.benches.synthetic")
    settings = import_module("afterclick.settings").Settings()
    with servers_module.own_servers(settings.jars) as servers:
        own = servers.settings
        shop = synthetic.make(own, items, users)
        traffic = served.changes(own, shop, changes_per_s)
        with traffic, served.served(own, described=shop.described) as (port, process):
            yield port, process.pid


if __name__ == "__main__":
    main()
