"""Results of experiments: sums over users in SQL → differences, p-values and decisions.

reads  sql  experiment_users, experiment_progress
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Connection, case, func, select

from afterclick.api import Decision, Metric
from afterclick.arrays import Json
from serving.control.experiments import Experiment
from serving.control.significance import SRM_LIMIT, Sample, holm, sample_ratio_p_value
from serving.control.store import experiment_progress, experiment_users

_COUNTS = ("users", "lists", "fallback_lists", "clicks", "buyers", "purchases")


@dataclass(frozen=True)
class ArmSums:
    """Sums over the users of one arm."""

    users: int = 0
    lists: int = 0
    fallback_lists: int = 0
    clicks: int = 0
    clicks_squared: int = 0
    buyers: int = 0
    purchases: int = 0

    def sample(self, metric: Metric) -> Sample:
        """The metric over these users."""
        if metric is Metric.CONVERSION:
            return Sample.of(self.users, self.buyers, self.buyers)  # 0² = 0, 1² = 1
        return Sample.of(self.users, self.clicks, self.clicks_squared)


def read_sums(connection: Connection, experiment: str) -> dict[str, ArmSums]:
    """Arm → sums over its users."""
    counts = experiment_users.c
    columns = {
        "users": func.count(),
        "lists": func.sum(counts.lists),
        "fallback_lists": func.sum(counts.fallback_lists),
        "clicks": func.sum(counts.clicks),
        "clicks_squared": func.sum(counts.clicks * counts.clicks),
        "buyers": func.sum(case((counts.purchases > 0, 1), else_=0)),
        "purchases": func.sum(counts.purchases),
    }
    labelled = [column.label(name) for name, column in columns.items()]
    of_experiment = counts.experiment == experiment
    query = select(counts.arm, *labelled).where(of_experiment).group_by(counts.arm)
    rows = connection.execute(query).mappings()
    return {row["arm"]: ArmSums(**{name: int(row[name]) for name in columns}) for row in rows}


def read_counted_until(connection: Connection) -> datetime | None:
    """Reactions are counted up to this time."""
    until: datetime | None = connection.scalar(select(experiment_progress.c.counted_until))
    return until


def results(
    experiment: Experiment,
    sums: Mapping[str, ArmSums],
    level: float,
    counted_until: datetime | None = None,
) -> Json:
    """Per arm the figures and, compared with the first arm, the decision at `level`."""
    arms = [sums.get(arm.name, ArmSums()) for arm in experiment.arms]
    shares = [arm.share for arm in experiment.arms]
    ratio_p_value = sample_ratio_p_value([arm.users for arm in arms], shares)
    broken = ratio_p_value < SRM_LIMIT
    comparisons = _comparisons(experiment, arms, level, broken)
    return {
        "name": experiment.name,
        "running": experiment.stopped is None,
        "metric": experiment.metric,
        "days": experiment.days,
        "planned_users": experiment.test.planned,
        "counted_until": counted_until,
        "level": level,
        "arms": [
            {
                "name": arm.name,
                "policy": arm.options.label,
                "share": arm.share / sum(shares),
                **_figures(arm_sums),
                **comparison,
            }
            for arm, arm_sums, comparison in zip(experiment.arms, arms, comparisons, strict=True)
        ],
        "sample_ratio": {"p_value": ratio_p_value, "broken": broken},
    }


def _figures(sums: ArmSums) -> Json:
    users, lists = max(sums.users, 1), max(sums.lists, 1)
    return {name: getattr(sums, name) for name in _COUNTS} | {
        "conversion": sums.buyers / users,
        "clicks_per_user": sums.clicks / users,
        "clicks_per_list": sums.clicks / lists,
    }


def _comparisons(
    experiment: Experiment, sums: Sequence[ArmSums], level: float, broken: bool
) -> list[Json]:
    """Per arm the difference to the first one, the adjusted p-value and the decision."""
    test = experiment.test
    control, *arms = (arm.sample(experiment.metric) for arm in sums)
    complete = min(arm.users for arm in sums) >= test.planned
    rows: list[Json] = [{"difference": None, "p_value": None, "decision": None}]
    p_values = holm([test.p_value(control, arm) for arm in arms])
    for arm, p_value in zip(arms, p_values, strict=True):
        difference = test.difference(control, arm, level)
        decision = Decision.UNDECIDED if complete else Decision.OPEN
        if p_value <= 1 - level:
            decision = Decision.BETTER if arm.mean > control.mean else Decision.WORSE
        rows.append(
            {
                "difference": asdict(difference) if difference else None,
                "p_value": p_value,
                "decision": None if broken else decision,
            }
        )
    return rows
