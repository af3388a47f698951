"""From rows to what they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, ValidationError

log = structlog.get_logger()
T = TypeVar("T", bound=BaseModel)


def readable(kind: type[T], rows: Iterable[Mapping[Any, Any]]) -> Iterator[T]:
    """Each row as a model. A row that is none, such as a newer program's, is left out with a warning."""
    for row in rows:
        try:
            yield kind.model_validate(dict(row))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            log.warning(
                "a row cannot be read", kind=kind.__name__, where=first["loc"], why=first["msg"]
            )
