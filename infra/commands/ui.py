"""`afterclick ui`."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="ui", no_args_is_help=True)


@app.command("ui")
def ui_command(
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    api_url: Annotated[str | None, typer.Option(help="Where the API answers.")] = None,
) -> None:
    """Serve the shop and the live dashboard; needs the API (`afterclick serve`)."""
    from afterclick.settings import Settings
    from ui.app import serve

    given = {"port": port, "host": host, "api_url": api_url}
    settings = Settings().ui.model_copy(update={k: v for k, v in given.items() if v is not None})
    serve(settings)
