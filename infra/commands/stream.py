"""`afterclick stream`: Kafka to Redis and to the Parquet log."""

from __future__ import annotations

import typer

app = typer.Typer(help="Turn events into history, counts and trends.", no_args_is_help=True)


@app.command()
def stream() -> None:
    """Run the stream job: events become state in Redis and rows of the Parquet log. Ends on SIGTERM."""
    import signal
    import threading

    from afterclick.settings import Settings
    from streaming import job

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    job.run(Settings(), stop)
