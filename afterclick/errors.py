"""The errors that Afterclick raises for users, in one tree.

AfterclickError
├── BadInput             invalid input; names the input and the fix
│   ├── BadEvent         a record or request that is not a valid event
│   ├── NotFound         unknown name
│   ├── AlreadyThere     the name is taken
│   ├── BadDataset       a file or folder that is not a readable dataset
│   └── BadArtifact      a model artifact that is damaged, incomplete or of another format
├── Unavailable          a dependency does not respond (Kafka, Redis, SQL, Java, a port)
│   ├── MissingExtra     an optional package is not installed; names the extra
│   └── NotRunning       the process to control (replay, simulation, stack) is not running
├── StateConflict        the state in Redis does not match the log
│   ├── LogTruncated     the topic no longer has the records after the applied offset
│   └── StateLocked      another stream job has the lease on the state
└── AlreadyRunning       the stack, or a training run, is already running

Programming mistakes stay built-ins (TypeError, ValueError, KeyError).
"""

import re

_URL_PASSWORD = re.compile(r"(://[^\s:/@'\"]*):[^\s/'\"]*@")
_NAMED_PASSWORD = re.compile(r"(?i)(password['\"]?\s*[=:]\s*['\"]?)[^\s'\",;&]+")


def redact(text: str) -> str:
    """The text without passwords: those of URLs, and what follows `password=`."""
    text = _URL_PASSWORD.sub(r"\1:***@", text) if "://" in text else text
    return _NAMED_PASSWORD.sub(r"\1***", text)


class AfterclickError(Exception):
    """An error whose one-line message names cause and fix; shown without a traceback.

    The message never has a password.
    """

    exit_code = 1

    def __str__(self) -> str:
        return redact(super().__str__())


class BadInput(AfterclickError):
    """Invalid input."""

    exit_code = 2


class BadEvent(BadInput):
    """A record or request that is not a valid event."""


class NotFound(BadInput):
    """Unknown name."""


class AlreadyThere(BadInput):
    """The name is taken."""


class BadDataset(BadInput):
    """Not a readable dataset."""


class BadArtifact(BadInput):
    """A model artifact that is damaged, incomplete or of another format version."""


class Unavailable(AfterclickError):
    """A dependency does not respond."""

    exit_code = 3


class MissingExtra(Unavailable, ImportError):
    """An optional package is not installed."""


class NotRunning(Unavailable):
    """The process to control is not running."""


class StateConflict(AfterclickError):
    """The state in Redis does not match the log."""

    exit_code = 4


class LogTruncated(StateConflict):
    """The topic no longer has the records after the applied offset."""


class StateLocked(StateConflict):
    """Another stream job has the lease on the state."""


class AlreadyRunning(AfterclickError):
    """The same process is already running."""

    exit_code = 5
