"""The notebooks run on the real data, and their .py pairs contain the same cells."""

from __future__ import annotations

from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = ["eda", "evaluation", "model_comparison"]


def test_every_notebook_has_its_pair() -> None:
    for suffix in (".py", ".ipynb"):
        assert sorted(path.stem for path in FOLDER.glob(f"*{suffix}")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_and_its_pair_contain_the_same_cells(name: str) -> None:
    text, notebook = (jupytext.read(FOLDER / f"{name}{suffix}") for suffix in (".py", ".ipynb"))
    assert [(c.cell_type, c.source) for c in text.cells] == [
        (c.cell_type, c.source) for c in notebook.cells
    ]


@pytest.mark.slow
@pytest.mark.dataset
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_draws(
    name: str, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASET", str(dataset.absolute()))
    notebook = jupytext.read(FOLDER / f"{name}.py")
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 3
