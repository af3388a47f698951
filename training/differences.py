"""What two models differ in: settings, metrics, origin, items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from afterclick.artifact import Manifest, load_array, read_manifest, verify
from training.challenger import flat


def between(one: Path, other: Path) -> dict[str, Any]:
    """The differences of two artifacts. Raises BadArtifact where one is damaged.

    `parameters` and `lineage` hold [first, second] of what is not the same; `metrics` also the difference.
    """
    first, second = _checked(one), _checked(other)
    mine, theirs = (set(load_array(folder, "item_ids").tolist()) for folder in (one, other))
    return {
        "versions": [first.version, second.version],
        "parameters": _changed(flat(first.parameters), flat(second.parameters)),
        "metrics": _metrics(first.metrics, second.metrics),
        "lineage": _changed(flat(first.lineage), flat(second.lineage)),
        "items": {
            "both": len(mine & theirs),
            "only_first": len(mine - theirs),
            "only_second": len(theirs - mine),
        },
        "files": sorted(first.files.keys() ^ second.files.keys()),
    }


def _checked(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    verify(folder, manifest)
    return manifest


def _changed(one: dict[str, Any], other: dict[str, Any]) -> dict[str, list[Any]]:
    names = sorted(one.keys() | other.keys())
    return {
        name: [one.get(name), other.get(name)] for name in names if one.get(name) != other.get(name)
    }


def _metrics(one: dict[str, float], other: dict[str, float]) -> dict[str, dict[str, float | None]]:
    out: dict[str, dict[str, float | None]] = {}
    for name in sorted(one.keys() | other.keys()):
        first, second = one.get(name), other.get(name)
        change = None if first is None or second is None else round(second - first, 6)
        out[name] = {"first": first, "second": second, "change": change}
    return out
