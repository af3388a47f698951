"""Embedding tables that move only the rows they meet end where AdamW over all rows does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.models.neural import Optimiser, Table

ROWS, DIM, RATE, STEPS = 200, 4, 0.003, 400


class Model(nn.Module):
    def __init__(self, table: type[Table] = Table) -> None:
        super().__init__()
        self.table, self.bias = table(ROWS, DIM, 0.1), nn.Parameter(torch.zeros(DIM))


class WithoutCatchUp(Table):
    """The control: rows that miss the steps in which no batch uses them."""

    def _catch_up(self, row: torch.Tensor) -> None:
        pass


def compare_with_adamw(decay: float, table: type[Table] = Table) -> None:
    """Train a table and a dense copy on the same batches; they must end in the same place."""
    torch.manual_seed(0)
    model, goal = Model(table), torch.randn(ROWS, DIM)
    start = model.table.weight.detach().clone()
    dense, bias = nn.Parameter(start.clone()), nn.Parameter(torch.zeros(DIM))
    lazy = Optimiser(model, RATE, decay, steps=50)
    lost = 1 - (1 - decay) ** (1 / 50)
    adamw = torch.optim.AdamW([dense, bias], lr=RATE, weight_decay=lost / RATE)
    for _ in range(STEPS):
        row = torch.randint(0, ROWS, (9,))  # rows may repeat
        lazy.step((model.table(row) + model.bias - goal[row]).square().sum())
        adamw.zero_grad()
        (dense[row] + bias - goal[row]).square().sum().backward()  # type: ignore[no-untyped-call]
        adamw.step()
    ended, expected = model.table.current(), dense.detach()
    moved = (expected - start).norm()
    assert (ended - expected).norm() < 0.01 * moved
    torch.testing.assert_close(model.bias.detach(), bias.detach(), rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_a_table_with_sparse_steps_ends_where_adamw_over_all_rows_does(decay: float) -> None:
    compare_with_adamw(decay)


def test_without_catching_up_a_table_ends_elsewhere() -> None:
    with pytest.raises(AssertionError):
        compare_with_adamw(0.3, WithoutCatchUp)


def test_sums_are_those_of_the_rows_and_so_are_their_gradients() -> None:
    torch.manual_seed(0)
    model = Model()
    row, start = torch.tensor([3, 5, 3, 7]), torch.tensor([0, 2, 2])
    sums = model.table.sums(row, start)
    weight = model.table.weight.detach()
    torch.testing.assert_close(
        sums.detach(), torch.stack([weight[3] + weight[5], torch.zeros(DIM), weight[3] + weight[7]])
    )
    sums.sum().backward()  # type: ignore[no-untyped-call]
    gradient = model.table.weight.grad
    assert gradient is not None
    assert gradient.coalesce().indices()[0].tolist() == [3, 5, 7]
    assert gradient.to_dense()[[3, 5, 7], 0].tolist() == [2.0, 1.0, 1.0]
