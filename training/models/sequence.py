"""The sequence model: a causal transformer over a user's items; every position predicts the next.

The logit of an item is its cosine with the output over a temperature, plus a learned multiple of
its log popularity. An item's vector is an embedding, which starts as the item's row in an SVD of
PPMI co-occurrence (`ppmi`), plus a projection of its content; the embedding is dropped at random in
training, so that the projection alone describes an item without interactions.

The block: RMSNorm before attention and SwiGLU, each added through a sigmoid gate (LiGR, Borisyuk
et al., 2025), and a learned bias of attention by distance. The loss is a softmax over the batch's
items and uniform ones, each weighted by the inverse of its probability of inclusion; a user's own
items are no negatives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from afterclick.arrays import FloatArray, IndexArray, Int64Array
from afterclick.sequence_encoder import EPSILON, HISTORY, N_GAPS, N_WEIGHTS, SequenceEncoder
from training.config import TowerConfig
from training.models.sequence_batches import SequenceBatch

Random = np.random.Generator
_STEPS = 256
"""Resolution of dropout's random numbers: one byte, a tenth of the time of torch's own."""


class ItemVectors(nn.Module):
    """Embeddings (n, dim) that begin at `start`, plus a projection of content `texts` (n, c)."""

    def __init__(self, start: FloatArray, texts: FloatArray | None, drop: float) -> None:
        super().__init__()
        self.table = nn.Embedding(len(start), start.shape[1], sparse=True)
        self.table.weight.data = torch.from_numpy(start)
        self.drop = drop
        self.text = None
        if texts is not None:
            self.texts = nn.Buffer(torch.from_numpy(texts), persistent=False)
            self.described = nn.Buffer(self.texts.any(1, keepdim=True), persistent=False)
            self.text = nn.Linear(texts.shape[1], start.shape[1], bias=False)
            nn.init.normal_(self.text.weight, std=0.01)  # at first embeddings decide

    def forward(self, item: Tensor, random: Random | None = None) -> Tensor:
        """(n, dim) vectors of distinct items (n,); with `random` some lose their embedding."""
        vector = self.table(item)
        if self.text is None:
            return torch.as_tensor(vector)
        if random is not None:
            kept = _kept((len(item), 1), self.drop, random, vector)
            vector = torch.where(self.described[item], vector * kept, vector)
        return torch.as_tensor(vector + self.text(self.texts[item]))

    @torch.no_grad()
    def all(self) -> Tensor:
        """(n, dim) the vectors of all items."""
        return torch.as_tensor(self(torch.arange(len(self.table.weight), device=self.device)))

    @property
    def device(self) -> torch.device:
        return self.table.weight.device


class SequenceNetwork(nn.Module):
    """The model; `log_popularity` (n,) of the items."""

    def __init__(self, items: ItemVectors, log_popularity: FloatArray, config: TowerConfig) -> None:
        super().__init__()
        dim, self.heads = config.dim, config.heads
        self.temperature, self.dropout = config.temperature, config.dropout
        self.item = items
        self.log_popularity = nn.Buffer(torch.from_numpy(log_popularity), persistent=False)
        self.beta = nn.Parameter(torch.tensor(0.5))
        self.inputs = nn.Parameter(torch.zeros(N_WEIGHTS + N_GAPS, dim))
        self.positions = nn.Parameter(torch.zeros(self.heads, HISTORY))
        self.norms = nn.Parameter(torch.ones(3, dim))
        self.attention = nn.Parameter(torch.randn(6, dim, dim) * dim**-0.5)
        self.swiglu = nn.Parameter(torch.randn(3, 2 * dim, dim) * dim**-0.5)
        nn.init.zeros_(self.attention[4:])  # gates start half open

    def encode(self, vectors: Tensor, batch: SequenceBatch, random: Random | None = None) -> Tensor:
        """(b, t, dim) unit vectors: the output at each token, of item vectors (b, t, dim).

        With `random` for dropout.
        """
        weight, gap = (torch.from_numpy(b).to(vectors.device) for b in (batch.weight, batch.gap))
        x = self._dropped(vectors + self.inputs[weight] + self.inputs[N_WEIGHTS + gap], random)
        x = self._gated(x, 4, self._dropped(self._attended(x), random))
        x = self._gated(x, 5, self._dropped(self._forward(x), random))
        return nn.functional.normalize(self._norm(x, 2), dim=-1)

    def bias(self, item: Tensor) -> Tensor:
        """(n,) of items (n,)."""
        return torch.as_tensor(self.beta * self.log_popularity[item])

    def _norm(self, x: Tensor, number: int) -> Tensor:
        return nn.functional.rms_norm(x, x.shape[-1:], self.norms[number], EPSILON)

    def _dropped(self, x: Tensor, random: Random | None) -> Tensor:
        return x if random is None else x * _kept(x.shape, self.dropout, random, x)

    def _gated(self, x: Tensor, gate: int, addition: Tensor) -> Tensor:
        return torch.addcmul(x, torch.sigmoid(x @ self.attention[gate]), addition)

    def _attended(self, x: Tensor) -> Tensor:
        b, t, dim = x.shape
        parts = torch.einsum("btd,ndo->nbto", self._norm(x, 0), self.attention[:3])
        query, key, value = parts.reshape(3, b, t, self.heads, -1).transpose(2, 3)
        position = torch.arange(t, device=x.device)
        since = position[:, None] - position
        bias = self.positions[:, since.clamp(0, HISTORY - 1)].masked_fill(since < 0, float("-inf"))
        out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return torch.as_tensor(out.transpose(1, 2).reshape(b, t, dim) @ self.attention[3])

    def _forward(self, x: Tensor) -> Tensor:
        a, (activated, linear, output) = self._norm(x, 1), self.swiglu
        return torch.as_tensor((nn.functional.silu(a @ activated.T) * (a @ linear.T)) @ output)

    def encoder(self) -> SequenceEncoder:
        """The block's weights as serving computes with them."""
        names = ("inputs", "positions", "norms", "attention", "swiglu")
        return SequenceEncoder(*(getattr(self, name).detach().cpu().numpy() for name in names))


def loss(
    network: SequenceNetwork,
    batch: SequenceBatch,
    log_inclusion: Tensor,
    random: Random,
    uniform: int,
) -> Tensor:
    """Cross entropy of the batch's targets among its items and `uniform` others, with dropout.

    `log_inclusion` (n,): log probability that such a sample includes an item.
    """
    there, device = batch.there, network.item.device
    others = random.integers(0, len(log_inclusion), uniform)
    sample = np.concatenate([batch.item[there], batch.target[there], others])
    distinct, place = np.unique(sample, return_inverse=True)
    size = int(there.sum())
    item, target = place[:size], place[size : 2 * size]
    padded = np.zeros(there.shape, np.int64)
    padded[there] = item

    def on_device(array: Any) -> Tensor:
        return torch.from_numpy(array).to(device)

    sampled, positive = on_device(distinct), on_device(target)
    vectors = network.item(sampled, random)
    users = network.encode(vectors[on_device(padded)], batch, random)[on_device(there)]
    users, items = users / network.temperature, nn.functional.normalize(vectors, dim=1)
    bias = network.bias(sampled)
    logit = (users * items[positive]).sum(1) + bias[positive]
    own = [on_device(index) for index in _own_items(there.sum(axis=1), item, target)]
    total = LogSumExp.apply(users, items, bias - log_inclusion[sampled], logit, *own)
    return torch.as_tensor(((total - logit) * on_device(batch.share[there])).mean())


class LogSumExp(torch.autograd.Function):
    """(b,) log(exp(positive) + Σ exp(users · items + bias)) without the pairs (row, column).

    By hand, in place: autograd would keep and pass over the (b, n) logits four times as often.
    """

    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        bias: Tensor,
        positive: Tensor,
        row: Tensor,
        column: Tensor,
    ) -> Tensor:
        share = torch.addmm(bias, users, items.T)
        share[row, column] = float("-inf")
        highest = torch.maximum(share.amax(1), positive)
        share.sub_(highest[:, None]).exp_()
        own = torch.exp(positive - highest)
        total = share.sum(1) + own
        share.div_(total[:, None])
        ctx.save_for_backward(users, items, share, own / total)
        return highest + torch.log(total)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (users, items, share, own), (gradient,) = ctx.saved_tensors, gradients
        share = share.mul_(gradient[:, None])
        return share @ items, share.T @ users, share.sum(0), gradient * own, None, None


def _own_items(
    lengths: Int64Array, item: IndexArray, target: IndexArray
) -> tuple[IndexArray, IndexArray]:
    """Each token with each item and target of its window; windows of `lengths` (b,) tokens."""
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    count = np.repeat(lengths, lengths)
    token = np.repeat(np.arange(len(item)), count)
    other = np.arange(len(token)) - (np.cumsum(count) - count)[token] + first[token]
    return np.concatenate([token, token]), np.concatenate([item[other], target[other]])


def _kept(shape: tuple[int, ...], dropout: float, random: Random, like: Tensor) -> Tensor:
    """Dropout's factors, in the expectation 1."""
    dropped = round(_STEPS * dropout)
    kept = random.integers(0, _STEPS, shape, np.uint8) >= dropped
    return torch.from_numpy(kept).to(like) * (_STEPS / (_STEPS - dropped))
