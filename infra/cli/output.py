"""What commands print: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import dataclasses
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from afterclick.errors import AfterclickError, BadInput, MissingExtra, Unavailable

if TYPE_CHECKING:  # help does not wait for these packages
    from pydantic import ValidationError
    from rich.console import RenderableType
    from rich.progress import Progress, ProgressColumn
    from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Choice = TypeVar("Choice", bound=str)
OWN = ("afterclick", "ingest", "streaming", "training", "serving", "ui", "infra")
_DISTRIBUTIONS = {
    "faiss": "faiss-cpu",
    "google": "protobuf",
    "jwt": "pyjwt",
    "kafka": "kafka-python",
    "sklearn": "scikit-learn",
}
"""Distributions whose name differs from that of their module."""


def emit(
    value: Any, as_json: bool, text: RenderableType | Callable[[], RenderableType] | None = None
) -> None:
    """Print a value as one line of JSON, or `text`: a rich renderable or plain text.

    Without a text: a line per name of the value. Models and dataclasses are printed as objects.
    """
    if as_json:
        import orjson

        option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
        typer.echo(orjson.dumps(value, default=_plain, option=option).decode())
        return
    shown = text() if callable(text) else text
    if shown is None:
        shown = "\n".join(f"{name:24} {field}" for name, field in _plain(value).items())
    if isinstance(shown, str):
        typer.echo(shown)
        return
    from rich.console import Console

    Console().print(shown, highlight=False)


def table(
    headings: Sequence[str], rows: Iterable[Sequence[Any]], caption: str | None = None
) -> Table:
    """A table with a cell for each value; None is an empty cell."""
    from rich.table import Table

    drawn = Table(*headings, caption=caption)
    for row in rows:
        drawn.add_row(*("" if value is None else str(value) for value in row))
    return drawn


def choice(option: str, value: str, choices: Sequence[Choice]) -> Choice:
    """The choice of this value. Raises BadInput for another one."""
    for found in choices:
        if found == value:
            return found
    raise BadInput(f"{option} {value!r}: expected one of {', '.join(choices)}")


def progress(message: str, seconds: float | None = None) -> None:
    """Print a line of progress to standard error."""
    from rich.console import Console

    stamp = "" if seconds is None else f"[dim]{seconds:6.1f}s[/dim]  "
    Console(stderr=True).print(f"{stamp}{message}", highlight=False)


def progress_bar(*columns: str | ProgressColumn, hidden: bool = False) -> Progress:
    """A progress bar on standard error: the description, then these columns."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    text = TextColumn("{task.description}")
    return Progress(text, *columns, console=Console(stderr=True), disable=hidden)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, instead of ending the process."""
    stop = threading.Event()
    before = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line and an exit code for every error that a user can fix."""
    try:
        yield
    except AfterclickError as error:
        _end(error)
    except ValueError as error:
        from pydantic import ValidationError

        if not isinstance(error, ValidationError) or error.title != "Settings":
            raise
        _end(_bad_setting(error))
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if not module or module in OWN:
            raise
        _end(_missing_package(module))
    except OSError as error:
        _end(Unavailable(f"{error.filename or 'the system'}: {error.strerror or error}"))


def _end(error: AfterclickError) -> NoReturn:
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, soft_wrap=True)
    console.print(f"[red]{type(error).__name__}[/red]:", escape(str(error)), highlight=False)
    sys.exit(error.exit_code)


def _bad_setting(error: ValidationError) -> BadInput:
    """The first wrong setting, by the name of its environment variable."""
    problem = error.errors(include_url=False)[0]
    variable = "AFTERCLICK_" + "__".join(str(part).upper() for part in problem["loc"])
    return BadInput(f"{variable}: {problem['msg']} (docs/settings.md lists every setting)")


def _missing_package(module: str) -> MissingExtra:
    """Name the extras of this project that install the module."""
    from importlib.metadata import PackageNotFoundError, requires

    distribution = _DISTRIBUTIONS.get(module, module.replace("_", "-"))
    try:
        lines = requires("afterclick") or []
    except PackageNotFoundError:
        lines = []
    extras = set()
    for line in lines:
        name = re.split(r"[ \[;<>=~!]", line)[0]
        if name == distribution and "extra == " in line:
            extras.add(line.split("extra == ")[1].strip("'\" )"))
    names = " or ".join(f"'afterclick[{extra}]'" for extra in sorted(extras) if extra != "dev")
    fix = f"pip install {names}" if names else "run `make setup`"
    return MissingExtra(f"this command needs the package {distribution}: {fix}")


def _plain(value: Any) -> Any:
    """A JSON type for what orjson does not know."""
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        return value.model_dump()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value if isinstance(value, dict) else str(value)
