"""Rules, experiments, API keys, revoked tokens: stored in SQL, served from memory.

reads   sql  rules, experiments, api_keys, token_revocations
writes  sql  rules, experiments, api_keys, token_revocations

The write-behind thread reads changes every two seconds. During a database outage the last state
stays in force; no request for a list waits for SQL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime

import structlog
from sqlalchemy.exc import IntegrityError

from afterclick.arrays import Json
from afterclick.errors import AfterclickError, AlreadyThere, NotFound
from afterclick.events import now
from serving.control.api_keys import (
    ApiKeyStore,
    KeyDraft,
    StoredKey,
    add_key,
    read_keys,
    revoke_key,
)
from serving.control.experiments import (
    Assignment,
    Experiment,
    ExperimentDraft,
    add_experiment,
    read_counted_until,
    read_experiments,
    read_sums,
    results,
    stop_experiment,
)
from serving.control.rules import Rule, RuleBook, RuleDraft, add_rule, read_rules, remove_rule
from serving.control.store import Database
from serving.control.user_tokens import UserTokens, revoke_tokens

log = structlog.get_logger()


class ControlPlane:
    """What administrators decide. Every method that writes blocks on SQL: call it in a thread.

    A change is in force in this process on return, in other processes within seconds.
    """

    def __init__(
        self, database: Database, rules: RuleBook, keys: ApiKeyStore, tokens: UserTokens
    ) -> None:
        self.database, self.keys, self.tokens = database, keys, tokens
        self._rules = rules
        self.assignment = Assignment()
        self.experiments: tuple[Experiment, ...] = ()
        self.available = False
        """Whether SQL answered last time."""
        self.on_rules: Callable[[], None] = lambda: None
        self.on_models: Callable[[Sequence[str]], None] = lambda versions: None
        """Called with the model versions that the arms of running experiments use."""
        self._lock = threading.Lock()

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Every rule, in force or not, oldest first."""
        return self._rules.rules

    def load(self) -> None:
        """Read the first state; an outage is logged and leaves the API without it."""
        try:
            self.sync(self.database)
        except AfterclickError as error:
            log.warning("rules, experiments and keys not loaded yet", error=str(error))

    def sync(self, database: Database) -> bool:
        """Read what changed. Raises Unavailable; the last state stays in force."""
        try:
            with self._lock:
                self._read(database)
        except Exception:
            self.available = False
            raise
        self.available = True
        return False

    def add_rule(self, draft: RuleDraft) -> Rule:
        """Store a rule. Raises Unavailable."""
        rule = Rule.of(draft)
        with self.database.begin() as connection:
            add_rule(connection, rule)
        self.sync(self.database)
        return rule

    def remove_rule(self, rule_id: str) -> None:
        """Delete a rule. Raises NotFound, Unavailable."""
        with self.database.begin() as connection:
            if not remove_rule(connection, rule_id):
                raise NotFound(f"no rule {rule_id}")
        self.sync(self.database)

    def experiment(self, name: str) -> Experiment:
        """An experiment by its name. Raises NotFound."""
        for experiment in self.experiments:
            if experiment.name == name:
                return experiment
        raise NotFound(f"no experiment {name}")

    def create_experiment(self, draft: ExperimentDraft) -> Experiment:
        """Start an experiment. Raises AlreadyThere, Unavailable."""
        experiment = Experiment.of(draft)
        try:
            with self.database.begin() as connection:
                add_experiment(connection, experiment)
        except IntegrityError as error:
            message = f"experiment {draft.name} already exists: choose another name"
            raise AlreadyThere(message) from error
        self.sync(self.database)
        return experiment

    def stop_experiment(self, name: str) -> Experiment:
        """Stop an experiment; its users get default lists again. Raises NotFound, Unavailable."""
        with self.database.begin() as connection:
            stop_experiment(connection, name)
        self.sync(self.database)
        return self.experiment(name)

    def results(self, name: str, level: float) -> Json:
        """Results so far, with intervals of `level`. Raises NotFound, Unavailable."""
        self.sync(self.database)
        experiment = self.experiment(name)
        with self.database.begin() as connection:
            counted_until = read_counted_until(connection)
            return results(experiment, read_sums(connection, name), level, counted_until)

    def add_key(self, draft: KeyDraft) -> tuple[StoredKey, str]:
        """Create a key; its row and the key. Raises AlreadyThere, Unavailable."""
        self.keys.reserve(draft.name)
        created = add_key(self.database, draft)
        self.sync(self.database)
        return created

    def revoke_key(self, name: str) -> None:
        """Revoke a key. Raises NotFound, Unavailable."""
        revoke_key(self.database, name)
        self.sync(self.database)

    def revoke_tokens(self, user_id: str) -> datetime:
        """Revoke every token that a user has now; the time of it. Raises Unavailable."""
        at = now()
        with self.database.begin() as connection:
            revoke_tokens(connection, {user_id: at})
        self.sync(self.database)
        return at

    def _read(self, database: Database) -> None:
        database.upgrade()
        with database.begin() as connection:
            rules, experiments = read_rules(connection), read_experiments(connection)
            self.keys.replace(read_keys(connection))
            self.tokens.read(connection)
        if rules != self._rules.rules:
            self._rules.rules = rules
            self.on_rules()
        if experiments != self.experiments:
            self.experiments, self.assignment = experiments, Assignment(experiments)
            self.on_models(self.assignment.models)
