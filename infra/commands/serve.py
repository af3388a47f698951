"""`afterclick serve`: the API."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Answer over HTTP and WebSocket.", no_args_is_help=True)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
) -> None:
    """Run the API: recommendations, feedback, live pushes. Ctrl-C drains and stops it."""
    from afterclick.settings import Settings
    from serving.server import run

    settings = Settings()
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    run(settings.model_copy(update={"serving": settings.serving.model_copy(update=given)}))
