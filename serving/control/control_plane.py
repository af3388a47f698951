"""What people decide about the service, kept in SQL and read from memory.

reads   sql  rules, experiments, api_keys
writes  sql  rules, experiments, experiment_users, api_keys

A thread makes the tables and looks for changes every two seconds. While the database is away, what was read
last stays in force; no request for a list ever waits for SQL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

import structlog
from sqlalchemy.exc import IntegrityError

from afterclick.arrays import Json
from afterclick.errors import AfterclickError, AlreadyThere, NotFound
from serving.control.api_keys import KeptKey, KeyDraft, KeyRing, add_key, read_keys, revoke_key
from serving.control.experiments import (
    Assignment,
    Experiment,
    ExperimentDraft,
    add_experiment,
    read_experiments,
    stop_experiment,
)
from serving.control.results import results
from serving.control.rules import Rule, RuleBook, RuleDraft, add_rule, read_rules, remove_rule
from serving.control.store import Database
from serving.events.trials import Trials, read_sums

log = structlog.get_logger()
PAUSE_S: Final = 2.0


class ControlPlane:
    """Follows the database. `available` says whether it answered last time."""

    def __init__(
        self,
        database: Database,
        rules: RuleBook,
        keys: KeyRing,
        on_rules: Callable[[], None],
        on_models: Callable[[Sequence[str]], None],
    ) -> None:
        self.database, self.keys = database, keys
        self._rules, self._on_rules, self._on_models = rules, on_rules, on_models
        self.trials = Trials()
        self.assignment = Assignment()
        self.experiments: tuple[Experiment, ...] = ()
        self.available = False
        self._upgraded = self._told = False
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Every rule that is kept, in force or not, the oldest first."""
        return self._rules.rules

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="control-plane", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what was counted, and end."""
        self._stop.set()
        if self._thread:
            self._thread.join(3.0)

    def refresh(self) -> None:
        """Read what is decided now, and write what was counted. Raises Unavailable."""
        with self._lock:
            if not self._upgraded:
                self.database.upgrade()
                self._upgraded = True
            with self.database.begin() as connection:
                rules, experiments = read_rules(connection), read_experiments(connection)
                self.keys.take(read_keys(connection))
            if rules != self._rules.rules:
                self._rules.rules = rules
                self._on_rules()
            if experiments != self.experiments:
                self.experiments, self.assignment = experiments, Assignment(experiments)
                self._on_models(self.assignment.models)
            self.trials.flush(self.database)

    def add_rule(self, draft: RuleDraft) -> Rule:
        """Keep a rule. It is in force here in a moment, elsewhere in seconds. Raises Unavailable. Blocks."""
        rule = Rule.of(draft)
        with self.database.begin() as connection:
            add_rule(connection, rule)
        self.refresh()
        return rule

    def remove_rule(self, rule_id: str) -> None:
        """Forget a rule. Raises NotFound, Unavailable. Blocks."""
        with self.database.begin() as connection:
            if not remove_rule(connection, rule_id):
                raise NotFound(f"no rule {rule_id}")
        self.refresh()

    def experiment(self, name: str) -> Experiment:
        """An experiment by its name. Raises NotFound."""
        for experiment in self.experiments:
            if experiment.name == name:
                return experiment
        raise NotFound(f"no experiment {name}")

    def create(self, draft: ExperimentDraft) -> Experiment:
        """Begin an experiment. Raises AlreadyThere, Unavailable. Blocks."""
        experiment = Experiment.of(draft)
        try:
            with self.database.begin() as connection:
                add_experiment(connection, experiment)
        except IntegrityError as error:
            raise AlreadyThere(
                f"there is an experiment {draft.name} already: take another name"
            ) from error
        self.refresh()
        return experiment

    def stop_experiment(self, name: str) -> Experiment:
        """End an experiment; everybody gets what they got before. Raises NotFound, Unavailable. Blocks."""
        with self.database.begin() as connection:
            stop_experiment(connection, name)
        self.refresh()
        return self.experiment(name)

    def results(self, name: str, level: float) -> Json:
        """What an experiment says so far. Raises NotFound, Unavailable. Blocks."""
        self.refresh()
        experiment = self.experiment(name)
        with self.database.begin() as connection:
            return results(experiment, read_sums(connection, name), level)

    def add_key(self, draft: KeyDraft) -> tuple[KeptKey, str]:
        """Make a key, in force here in a moment, elsewhere in seconds. Raises AlreadyThere, Unavailable."""
        self.keys.takes(draft.name)
        made = add_key(self.database, draft)
        self.refresh()
        return made

    def revoke_key(self, name: str) -> None:
        """End a key. Raises NotFound, Unavailable. Blocks."""
        revoke_key(self.database, name)
        self.refresh()

    def look(self) -> None:
        """Read what is decided now; where that fails, say so once and go on with what is known."""
        try:
            self.refresh()
            self.available, self._told = True, False
        except AfterclickError as error:
            if not self._told:
                log.warning("the control plane goes on with what it knows", error=str(error))
            self.available, self._told = False, True
        except Exception:
            log.exception("the control plane could not be read")
            self.available = False

    def _run(self) -> None:
        while True:
            self.look()
            if self._stop.is_set():  # looked at after a last refresh: what was counted is written
                return
            self._stop.wait(PAUSE_S)
