"""Generated pages of docs/: settings, commands, the JSON Schema of events, results."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from afterclick.events import json_schema
from afterclick.settings import Settings, jar_cache
from infra import results_page


def pages(root: Any) -> dict[str, str]:
    """File name → text. `root`: the command `afterclick`."""
    return {
        "settings.md": settings_page(),
        "commands.md": commands_page(root),
        "events.schema.json": json.dumps(json_schema(), indent=2) + "\n",
        "results.md": results_page.page(),
    }


def settings_page() -> str:
    """A table of every AFTERCLICK_* variable."""
    lines = [
        "# Settings",
        "",
        "Environment variables, read when a process starts. Written by `make docs` from "
        "`afterclick/settings.py`.",
    ]
    for title, rows in _sections():
        lines += ["", f"## {title}", "", "| variable | default | what |", "|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def setting_names() -> set[str]:
    """Every environment variable that is a setting."""
    return {name for name, _ in _settings(Settings, "AFTERCLICK_")}


def commands_page(root: Any) -> str:
    """Every command with its arguments and options."""
    lines = [
        "# Commands",
        "",
        "Written by `make docs` from the commands' own help (`afterclick --help`).",
    ]
    for path, command in _walk(root, "afterclick"):
        lines += ["", f"## {path}", "", " ".join(str(command.help).split())]
        options = [_option(parameter) for parameter in command.params if parameter.name != "help"]
        if options:
            lines += ["", "| option | default | what |", "|---|---|---|", *options]
    return "\n".join(lines) + "\n"


def command_names(root: Any) -> list[str]:
    """Every command, as typed: `afterclick ingest replay`."""
    return [path for path, _ in _walk(root, "afterclick")]


def _sections() -> Iterator[tuple[str, list[str]]]:
    own = [
        _row(f"AFTERCLICK_{n.upper()}", f)
        for n, f in Settings.model_fields.items()
        if not _nested(f)
    ]
    yield "Everywhere", own
    for name, field in Settings.model_fields.items():
        if model := _nested(field):
            rows = [
                _row(variable, f)
                for variable, f in _settings(model, f"AFTERCLICK_{name.upper()}__")
            ]
            yield name, rows


def _settings(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        variable = f"{prefix}{name.upper()}"
        if nested := _nested(field):
            yield from _settings(nested, f"{variable}__")
        else:
            yield variable, field


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return (
        annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    )


def _row(variable: str, field: FieldInfo) -> str:
    what = field.description or ""
    if choices := _choices(field.annotation):
        what += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
    return f"| `{variable}` | {_default(field)} | {what} |".replace("\n", " ")


def _default(field: FieldInfo) -> str:
    if field.default_factory is jar_cache:
        return "`~/.cache/afterclick/jars`"
    value = field.get_default(call_default_factory=True)
    if value is None or value == "":
        return "unset"
    if isinstance(value, dict):
        return f"`{json.dumps({str(key): item for key, item in value.items()})}`"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def _choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    if get_origin(annotation) in {Union, types.UnionType}:
        return tuple(choice for part in get_args(annotation) for choice in _choices(part))
    return ()


def _walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The leaves of the tree of commands."""
    children = getattr(command, "commands", None)
    if children is None:
        if not command.hidden:
            yield path, command
        return
    for name in sorted(children):
        yield from _walk(children[name], f"{path} {name}")


def _option(parameter: Any) -> str:
    names = (
        ", ".join(parameter.opts)
        if parameter.param_type_name == "option"
        else parameter.name.upper()
    )
    default = parameter.default if isinstance(parameter.default, str | int | float | Path) else None
    shown = "" if default is None or default is False else f"`{default}`"
    return f"| `{names}` | {shown} | {getattr(parameter, 'help', '') or ''} |"
