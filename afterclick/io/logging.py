"""Configure logging once: readable lines on a terminal, one JSON object per line otherwise."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from structlog.typing import Processor

from afterclick.errors import redact

_SHARED: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.StackInfoRenderer(),
)


def _without_passwords(_: object, __: str, line: Any) -> Any:
    return redact(line)


def configure_logging() -> None:
    """Send structlog and the standard library's warnings to standard error in one format.

    Values bound with `structlog.contextvars` (request_id, event_id) are part of every line.
    """
    terminal = sys.stderr.isatty()
    renderer: list[Processor] = (
        # tracebacks without local variables, which may be settings
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    renderer.append(_without_passwords)
    stamp = structlog.processors.TimeStamper(
        fmt="%H:%M:%S" if terminal else "iso", utc=not terminal
    )
    structlog.configure(
        processors=[*_SHARED, stamp, *renderer],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, stamp],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
