"""Train the sequence model: epochs with early stopping on held-out targets, checkpoints, export.

reads, writes  <checkpoints>/<fingerprint>.pt  the state after each epoch; a training of the same
               rows with the same configuration continues there
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afterclick.arrays import BoolArray, FloatArray, IndexArray, Int64Array
from afterclick.model import UNKNOWN_BIAS, TowerArrays
from afterclick.trends import DAY_MS
from training.config import TowerConfig
from training.interactions import Interactions
from training.models import ppmi
from training.models.sequence import ItemVectors, SequenceNetwork, loss
from training.models.sequence_batches import Sequences
from training.models.stopping import EarlyStopping, TimeBudget

_KEPT_CHECKPOINTS = 16
_BETAS = (0.9, 0.98)


@dataclass(frozen=True)
class ItemInputs:
    """What is known of the items before the training."""

    texts: FloatArray | None = None
    """(n, c) content vectors, zeros without"""
    previous: FloatArray | None = None
    """(n, dim) item vectors of a previous model, zeros for items that it did not know"""

    def choose(self, known: BoolArray) -> ItemInputs:
        """Of the items that a mask (n,) marks."""
        arrays = (None if a is None else a[known] for a in (self.texts, self.previous))
        return ItemInputs(*arrays)


def fit(
    rows: Interactions,
    config: TowerConfig,
    inputs: ItemInputs | None = None,
    checkpoints: Path | None = None,
) -> TowerArrays | None:
    """The served sequence model, learned from `rows`; None if no user has two frequent items.

    An item with too few interactions for an embedding has the projection of its content.
    """
    inputs = inputs or ItemInputs()
    counts = rows.item_counts()
    known = counts >= config.min_interactions
    frequent = rows.choose(known)
    sequences = Sequences.of(frequent)
    if not len(sequences):
        return None
    training = Training(sequences, inputs.choose(known), int(known.sum()), config)
    training.run(checkpoints)
    return _export(training, known, counts, inputs.texts)


class Training:
    """One training on the `n_items` items of `rows`."""

    def __init__(
        self, rows: Sequences, inputs: ItemInputs, n_items: int, config: TowerConfig
    ) -> None:
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config, self.inputs = config, inputs
        self.all, self.held = rows, held_out(rows, config)
        kept = np.ones(len(rows), bool)
        kept[self.held] = False
        self.rows = rows.where(kept)
        self.device = torch.device(_device(config.device))
        age_days = (self.rows.time_ms - self.rows.time_ms.max(initial=0)) / DAY_MS
        share = np.exp2(age_days / config.half_life_days).astype(np.float32)
        self.share = share / max(float(share.mean()), 1e-12)
        counts = np.bincount(self.rows.item, self.share, n_items)
        self.log_popularity = np.log1p(counts).astype(np.float32)
        of_item = np.bincount(self.rows.item, minlength=n_items) / max(len(self.rows), 1)
        expected = config.tokens * of_item + config.uniform / n_items
        inclusion = np.log(-np.expm1(-expected)).astype(np.float32)
        self.log_inclusion = torch.from_numpy(inclusion).to(self.device)
        items = ItemVectors(self._start(n_items), inputs.texts, config.drop_item)
        self.network = SequenceNetwork(items, self.log_popularity, config).to(self.device)
        table = self.network.item.table.weight
        others = [p for p in self.network.parameters() if p is not table]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.SparseAdam([table], config.rate, _BETAS),  # moves the batch's rows alone
            torch.optim.AdamW(others, config.rate, _BETAS),
        ]

    def _start(self, n_items: int) -> FloatArray:
        """(n_items, dim) where the embeddings begin."""
        config, previous = self.config, self.inputs.previous
        start = ppmi.item_vectors(self.rows.user, self.rows.item, n_items, config.dim, config.seed)
        random = np.random.default_rng(config.seed)
        alone = ~start.any(axis=1)
        start[alone] = random.normal(scale=0.1 / config.dim**0.5, size=(alone.sum(), config.dim))
        if previous is None:
            return start
        both = previous.any(axis=1) & ~alone
        # the axes of an SVD are arbitrary: rotate the start to the previous vectors (Procrustes)
        left, _, right = np.linalg.svd(start[both].T.astype(np.float64) @ previous[both])
        start = (start @ (left @ right)).astype(np.float32)
        start[both] = previous[both]
        return np.asarray(start)

    def run(self, checkpoints: Path | None = None, stopping: EarlyStopping | None = None) -> None:
        """Train until the validation no longer improves, or time or epochs are used up; keep the
        best epoch's network."""
        config = self.config
        if stopping is None and len(self.held):
            stopping = EarlyStopping(self.validation_score, config.patience)
        progress = Progress(self, stopping, TimeBudget(config.seconds), checkpoints)
        while not progress.over and progress.budget.allows(config.epochs):
            self._epoch(progress.budget)
            progress.after_epoch()
        self.network.load_state_dict(progress.best)

    def _epoch(self, budget: TimeBudget) -> None:
        """Random numbers depend on seed and number alone, so that an epoch can be repeated."""
        config, random = self.config, np.random.default_rng((self.config.seed, budget.epochs))
        for batch in self.rows.epoch(config.tokens, config.length, self.share, random):
            for optimiser in self.optimisers:
                optimiser.zero_grad()
            loss(self.network, batch, self.log_inclusion, random, config.uniform).backward()  # type: ignore[no-untyped-call]
            for optimiser in self.optimisers:
                optimiser.step()
            if budget.used_up:
                break

    def validation_score(self) -> float:
        """NDCG of the held-out targets among all items without the user's own, at every rank: less
        noise than at the first ones."""
        rows, ends = self.all, self.held
        first = rows.starts()[ends]
        own = rows.owned(ends)
        found = []
        for part in np.array_split(np.arange(len(ends)), max(1, len(ends) // 256)):
            scores = self.scores(rows, first[part], ends[part])
            target = rows.item[ends[part]]
            mine = np.isin(own[0], part)
            of_target = scores[np.arange(len(part)), target].copy()
            scores[own[0][mine] - part[0], own[1][mine]] = -np.inf
            rank = (scores > of_target[:, None]).sum(axis=1)
            found.append(1 / np.log2(rank + 2))
        return float(np.concatenate(found).mean())

    @torch.no_grad()
    def scores(self, rows: Sequences, first: IndexArray, ends: IndexArray) -> FloatArray:
        """(b, n_items) logits for histories: those of `rows` from `first` (b,) to before `ends`."""
        first = np.maximum(first, ends - self.config.length)
        batch = rows.batch(first, ends - first, np.ones(len(rows), np.float32))
        vectors = self.network.item.all()
        item = torch.from_numpy(batch.item).to(self.device)
        users = self.network.encode(vectors[item], batch)
        newest = torch.from_numpy(ends - first - 1).to(self.device)
        users = users[torch.arange(len(ends), device=self.device), newest]
        items = torch.nn.functional.normalize(vectors, dim=1) / self.network.temperature
        bias = self.network.beta * self.network.log_popularity
        return np.asarray(torch.addmm(bias, users, items.T).cpu().numpy())

    def fingerprint(self) -> str:
        """Of everything that the result depends on, but limits of time and epochs."""
        config = replace(self.config, seconds=0.0, epochs=0)
        digest = hashlib.sha256(repr(asdict(config)).encode())
        rows = self.all
        for array in (rows.user, rows.item, rows.weight, rows.time_ms, *vars(self.inputs).values()):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


class Progress:
    """How far a training is: loaded from its checkpoint if there is one, written after each
    epoch."""

    def __init__(
        self,
        training: Training,
        stopping: EarlyStopping | None,
        budget: TimeBudget,
        folder: Path | None,
    ) -> None:
        self._training, self._stopping, self.budget = training, stopping, budget
        self._path = None if folder is None else folder / f"{training.fingerprint()}.pt"
        self.over = False
        self.best = _copy(training.network.state_dict())
        if self._path is not None and self._path.is_file():
            self._load(torch.load(self._path, map_location=training.device, weights_only=True))

    def after_epoch(self) -> None:
        """Measure the network; remember the best one."""
        stopping = self._stopping
        self.over = stopping is not None and stopping.over(self.budget.epochs)
        if stopping is None or stopping.rising:
            self.best = _copy(self._training.network.state_dict())
        if self._path is not None:
            self._save(self._path)

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        stopping = self._stopping
        state = {
            "network": self._training.network.state_dict(),
            "optimisers": [o.state_dict() for o in self._training.optimisers],
            "best": self.best,
            "over": self.over,
            "epochs": self.budget.epochs,
            "seconds": self.budget.elapsed(),
            "stopping": None if stopping is None else (stopping.best, stopping.best_epochs),
        }
        unfinished = path.with_suffix(".tmp")
        torch.save(state, unfinished)
        unfinished.replace(path)
        newest_first = sorted(path.parent.glob("*.pt"), key=lambda p: -p.stat().st_mtime)
        for old in newest_first[_KEPT_CHECKPOINTS:]:
            old.unlink(missing_ok=True)

    def _load(self, state: dict[str, Any]) -> None:
        self._training.network.load_state_dict(state["network"])
        for optimiser, saved in zip(self._training.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.best, self.over = state["best"], state["over"]
        self.budget.resume(state["epochs"], state["seconds"])
        if self._stopping is not None and state["stopping"] is not None:
            self._stopping.best, self._stopping.best_epochs = state["stopping"]
            self._stopping.epochs = state["epochs"]


def held_out(rows: Sequences, config: TowerConfig) -> IndexArray:
    """The rows of the validation targets: the newest of a sample of users with three or more."""
    last = np.flatnonzero(np.append(rows.user[1:] != rows.user[:-1], True))
    enough = last[last - rows.starts()[last] >= 2]
    random = np.random.default_rng(config.seed)
    count = min(config.validation, len(enough) // 10)
    return np.sort(random.choice(enough, count, replace=False))


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


@torch.no_grad()
def _export(
    training: Training, known: BoolArray, counts: Int64Array, texts: FloatArray | None
) -> TowerArrays:
    """The arrays that serving computes with; items without embedding have their content's."""
    network, dim = training.network.cpu(), training.config.dim
    beta = float(network.beta)
    history = np.zeros((len(known), dim), np.float32)
    if texts is not None and network.item.text is not None:
        history = network.item.text(torch.from_numpy(texts)).numpy()
    history[known] = network.item.all().numpy()
    described = history.any(axis=1)
    log_popularity = np.log1p(counts).astype(np.float32)
    log_popularity[known] = training.log_popularity
    length = np.linalg.norm(history, axis=1, keepdims=True)
    items = history / np.maximum(length, 1e-12) / network.temperature
    bias = np.where(described, beta * log_popularity, UNKNOWN_BIAS)
    targets = np.column_stack([items, bias]).astype(np.float32)
    return TowerArrays(history, targets, encoder=network.encoder())
