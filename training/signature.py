"""What a served model takes and gives, for MLflow: signature and input example.

writes  mlflow  <run>/model/MLmodel, input_example.json
"""

from __future__ import annotations

import json
from pathlib import Path

from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

EXAMPLE = {"user_id": "alice", "items": ["B007WTAJTO"], "n": 10}
"""A request: a user, what is looked at now (newest first), how many items."""


def write(folder: Path, run_id: str) -> None:
    """Write both files into a folder. Ranking needs the user's history and the trends, so that the model is
    served by `afterclick serve` and has no flavour of MLflow's own."""
    signature = ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.string, "user_id"),
                ColSpec(Array(DataType.string), "items", required=False),
                ColSpec(DataType.long, "n", required=False),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(Array(DataType.string), "item_id"),
                ColSpec(Array(DataType.double), "score"),
            ]
        ),
    )
    example = {"artifact_path": "input_example.json", "type": "json_object"}
    model = Model(
        artifact_path="model", run_id=run_id, signature=signature, saved_input_example_info=example
    )
    model.save(str(folder / "MLmodel"))
    (folder / "input_example.json").write_text(json.dumps(EXAMPLE, indent=1))
