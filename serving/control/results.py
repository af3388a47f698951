"""The results of an experiment as they are answered and printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from afterclick.arrays import Json
from serving.control.experiments import Arm, Experiment
from serving.control.significance import (
    SRM_LIMIT,
    Sums,
    conversion,
    conversion_difference,
    ctr,
    ctr_difference,
    ctr_p_value,
    sample_ratio_p_value,
)

_COUNTS = ("users", "lists", "clicked", "clicks", "buyers", "purchased")


def results(experiment: Experiment, sums: Mapping[str, Sums], level: float) -> Json:
    """Per arm the figures with their intervals; the first arm is the control."""
    found = [sums.get(arm.name, Sums()) for arm in experiment.arms]
    shares = [arm.share for arm in experiment.arms]
    p_value = sample_ratio_p_value([arm.users for arm in found], shares)
    control = found[0]
    return {
        "name": experiment.name,
        "running": experiment.stopped is None,
        "level": level,
        "arms": [
            _row(arm, arm.share / sum(shares), one, None if at == 0 else control, level)
            for at, (arm, one) in enumerate(zip(experiment.arms, found, strict=True))
        ],
        "sample_ratio": {"p_value": p_value, "broken": p_value < SRM_LIMIT},
    }


def _row(arm: Arm, share: float, sums: Sums, control: Sums | None, level: float) -> Json:
    return {
        "name": arm.name,
        "policy": arm.options.label,
        "share": share,
        **{name: getattr(sums, name) for name in _COUNTS},
        "ctr": asdict(ctr(sums, level)),
        "conversion": asdict(conversion(sums, level)),
        "ctr_difference": asdict(ctr_difference(control, sums, level)) if control else None,
        "ctr_p_value": ctr_p_value(control, sums) if control else None,
        "conversion_difference": asdict(conversion_difference(control, sums, level))
        if control
        else None,
    }
