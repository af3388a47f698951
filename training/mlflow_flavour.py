"""The sequence model of an artifact as MLflow's flavour `python_function`.

reads   artifact  the files of a run's model

`mlflow.pyfunc.load_model("runs:/<id>/model").predict(frame)` where this package is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from afterclick import model as models
from afterclick.errors import BadInput
from afterclick.model import Model, TowerArrays

DEFAULT_LENGTH = 10
"""Items of a list where the frame has no column `n`."""


class SequenceLists:
    """Lists for histories of item ids."""

    def __init__(self, model: Model, towers: TowerArrays) -> None:
        self._model, self._towers = model, towers

    def predict(
        self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """The columns `item_id` and `score`: a list each, best first, without the history.

        `model_input`: the column `items`, ids of each user's items, newest first; optionally `n`,
        the length of the list. Items count as taken now. An unknown history has an empty list.
        Raises BadInput without the column.
        """
        if "items" not in model_input:
            raise BadInput("the input has no column 'items': give a list of item ids in each row")
        lengths = model_input.get("n", pd.Series(DEFAULT_LENGTH, model_input.index))
        lists = [self._list(*row) for row in zip(model_input["items"], lengths, strict=True)]
        return pd.DataFrame(lists, columns=["item_id", "score"], index=model_input.index)

    def _list(self, item_ids: Sequence[str], n: int) -> tuple[list[str], list[float]]:
        index, towers = self._model.index, self._towers
        items = np.array([index[i] for i in item_ids if i in index], np.int32)
        ones = np.ones(len(items), np.float32)
        user = towers.user(items, ones, np.zeros(len(items)), 0.0)
        if user is None:
            return [], []
        scores = np.where(towers.known, towers.targets @ user, -np.inf)
        scores[items] = -np.inf
        best = np.argsort(-scores)[: int(n)]
        best = best[np.isfinite(scores[best])]
        return self._model.item_ids[best].tolist(), scores[best].tolist()


def _load_pyfunc(path: str) -> SequenceLists:
    """Called by MLflow with the folder of the model. Raises BadInput without a sequence model."""
    model, _ = models.load(Path(path))
    if model.towers is None:
        raise BadInput(f"{path}: model {model.version} was trained without the sequence model")
    return SequenceLists(model, model.towers)
