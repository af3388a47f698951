"""`afterclick serve`: the API."""

from __future__ import annotations

import os
from typing import Annotated

import typer

app = typer.Typer(help="Answer over HTTP and WebSocket.", no_args_is_help=True)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
) -> None:
    """Run the API: recommendations, feedback, live pushes. Ctrl-C drains and stops it."""
    # products of a few hundred rows: a second thread costs more than it brings
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from afterclick.settings import Settings
    from serving.app import run

    settings = Settings()
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    run(settings.model_copy(update={"serving": settings.serving.model_copy(update=given)}))


@app.command()
def console(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
) -> None:
    """Run the admin console of this home: replay, simulation, training, models, fault injection."""
    from afterclick.settings import Settings
    from infra.console.admin_app import serve as run

    settings = Settings()
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    run(settings.model_copy(update={"console": settings.console.model_copy(update=given)}))


@app.command("api-token")
def api_token(
    user_id: Annotated[str, typer.Argument(help="The user it is good for.")],
    hours: Annotated[float, typer.Option(min=0.01, max=720, help="How long it is good for.")] = 1.0,
) -> None:
    """Make a token for one user's browser, signed with AFTERCLICK_SERVING__TOKEN_SECRET."""
    from afterclick.errors import BadInput
    from afterclick.settings import Settings
    from serving.control.auth import new_token

    secret = Settings().serving.token_secret
    if secret is None:
        raise BadInput(
            "there are no tokens: set AFTERCLICK_SERVING__TOKEN_SECRET (openssl rand -hex 32)"
        )
    typer.echo(new_token(secret, user_id, hours * 3600)[0])
