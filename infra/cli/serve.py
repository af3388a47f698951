"""`afterclick serve`, `console`, `ui`, `api-token`: the HTTP servers, and tokens for browsers."""

from __future__ import annotations

import os
from typing import Annotated

import typer

app = typer.Typer()
Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
]


@app.command()
def serve(host: Host = None, port: Port = None) -> None:
    """Run the API: recommendations, feedback, live pushes. Ctrl-C drains and stops it."""
    # products of a few hundred rows: a second thread costs more than it brings
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from afterclick.settings import Settings
    from serving.app import run

    settings = Settings()
    serving = settings.serving.model_copy(update=_given(host=host, port=port))
    run(settings.model_copy(update={"serving": serving}))


@app.command()
def console(host: Host = None, port: Port = None) -> None:
    """Run the admin console of this home: replay, simulation, training, models, fault injection."""
    from afterclick.settings import Settings
    from infra.console.admin_app import serve as run

    settings = Settings()
    own = settings.console.model_copy(update=_given(host=host, port=port))
    run(settings.model_copy(update={"console": own}))


@app.command("ui")
def ui_command(
    port: Port = None,
    host: Host = None,
    api_url: Annotated[str | None, typer.Option(help="URL of the API.")] = None,
) -> None:
    """Serve the shop and the live dashboard; needs the API (`afterclick serve`)."""
    from afterclick.settings import Settings
    from ui.web_app import serve as run

    run(Settings().ui.model_copy(update=_given(host=host, port=port, api_url=api_url)))


@app.command("api-token")
def api_token(
    user_id: Annotated[str, typer.Argument(help="The user of the token.")],
    hours: Annotated[float, typer.Option(min=0.01, max=720, help="Lifetime.")] = 1.0,
) -> None:
    """Create a token for one user's browser, signed with AFTERCLICK_SERVING__TOKEN_SECRET."""
    from afterclick.errors import BadInput
    from afterclick.settings import Settings
    from serving.control.auth import new_token

    secret = Settings().serving.token_secret
    if secret is None:
        raise BadInput(
            "tokens are disabled: set AFTERCLICK_SERVING__TOKEN_SECRET (openssl rand -hex 32)"
        )
    typer.echo(new_token(secret, user_id, hours * 3600)[0])


def _given(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}
