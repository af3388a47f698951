"""Every error that a user of Afterclick can meet, in one tree.

AfterclickError
├── BadInput             what was handed in is wrong; says which input and what to do
│   ├── BadEvent         a record on a topic, or a request, that is no valid event
│   ├── NotFound         what was asked for by its name is not there
│   ├── AlreadyThere     a name is taken
│   ├── BadDataset       a dataset file or folder that cannot be read as one
│   └── BadArtifact      a model artifact that is damaged, incomplete or of another version
├── MissingExtra         an optional dependency is not installed; names the extra
├── Unavailable          a part that should answer does not (Kafka, Redis, Java, a port)
│   └── NotRunning       what was to be steered (a replay, shoppers, a stack) does not run
├── StateConflict        the state in Redis cannot be trusted to go on from
│   ├── LogTruncated     the topic no longer reaches back to the position
│   └── StateLocked      another stream job holds this state
└── AlreadyRunning       the stack, or a training run, is running already

Programming mistakes stay built-ins (TypeError, ValueError, KeyError).
"""


class AfterclickError(Exception):
    """A failure with one line that says what is wrong and what to do. Shown without a traceback."""

    exit_code = 1


class BadInput(AfterclickError):
    """What was handed in is wrong."""

    exit_code = 2


class BadEvent(BadInput):
    """A record that is no valid event."""


class NotFound(BadInput):
    """What was asked for by its name is not there."""


class AlreadyThere(BadInput):
    """A name is taken."""


class BadDataset(BadInput):
    """A dataset that cannot be read as one."""


class BadArtifact(BadInput):
    """A model artifact that is damaged, incomplete or of another format version."""


class MissingExtra(AfterclickError, ImportError):
    """An optional dependency is not installed."""

    exit_code = 3


class Unavailable(AfterclickError):
    """A part that should answer does not."""

    exit_code = 3


class NotRunning(Unavailable):
    """What was to be steered does not run."""


class StateConflict(AfterclickError):
    """The state in Redis cannot be trusted to go on from."""

    exit_code = 4


class LogTruncated(StateConflict):
    """The topic no longer reaches back to the position held in Redis."""


class StateLocked(StateConflict):
    """Another stream job holds this state."""


class AlreadyRunning(AfterclickError):
    """The same thing is running already."""

    exit_code = 5
