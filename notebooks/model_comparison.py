# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Comparison of models
#
# The models with a short training, fitted on all interactions before a day and evaluated on later
# ones.
# `afterclick evaluate` compares all models, including the ranker and the neural models.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from afterclick.settings import Settings
from training.config import AlsConfig, NeighbourConfig
from training.evaluation import list_metrics, scorers
from training.evaluation.als_search import als_model
from training.evaluation.measure import FullRanking, answer
from training.evaluation.time_split import split_of
from training.models.als import implicit_als
from training.models.neighbours import cosine_neighbours
from training.protocols import queries, sample

plt.rcParams.update(
    {"figure.figsize": (10, 3.4), "axes.spines.top": False, "axes.spines.right": False}
)
QUESTIONS = 400
split, _ = split_of(Settings(), Path(os.environ["DATASET"]), None)
train = split.train
print(
    f"{len(train):,} reviews before {np.datetime64(split.cut_ms, 'ms').astype('datetime64[D]')}, "
    f"{split.eligible.sum():,} items ranked"
)

# %% [markdown]
# ## Fit

# %%
known = train.where(split.eligible[train.item])
paired = known.where(known.user_counts()[known.user] >= 2)
config = AlsConfig(rank=32, reg=1.0, alpha=3.0, iterations=5)
near = cosine_neighbours(known, NeighbourConfig(count=50))
model = als_model(train, implicit_als(paired, config), config, near)
models = {
    "popularity": scorers.popularity(model),
    "decayed popularity": scorers.decayed_popularity(scorers.BEST_HALF_LIFE),
    "item-item": scorers.by_neighbours(*near),
    "ALS": scorers.als(model),
}

# %% [markdown]
# ## Evaluate
# `returning`: users with a history before the cut. `live`: the second item, after the first one
# arrived
# as an event. `frozen`: the same query without that event.

# %%
asked = {p: sample(queries(split, p), QUESTIONS, 1) for p in ("returning", "live", "frozen")}
rankings = {name: FullRanking(scorer, split.eligible, 1) for name, scorer in models.items()}
lists = {p: answer(split.log, q, rankings).lists for p, q in asked.items()}
hits = {
    p: {
        m: list_metrics.hit_rate(
            list_metrics.hits_of(shown, asked[p].targets), asked[p].n_targets, 10
        )
        for m, shown in found.items()
    }
    for p, found in lists.items()
}

# %%
COLOURS = ["#9aa5b1", "#5b8def", "#e6a23c", "#3bb273"]
figure, axes = plt.subplots()
for n, (name, colour) in enumerate(zip(models, COLOURS, strict=True)):
    value = np.array([hits[p][name].mean() for p in asked])
    bounds = np.array([list_metrics.interval(hits[p][name], 1) for p in asked])
    error = np.abs(bounds.T - value)
    axes.bar(
        np.arange(3) + 0.2 * n - 0.3, value, 0.2, yerr=error, label=name, color=colour, capsize=2
    )
axes.set_xticks(range(3), asked)
axes.set(title=f"HR@10, {QUESTIONS} queries each, 95 % bootstrap interval", ylabel="HR@10")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Agreement
# Share of the ten items that two models have in common. Models with little agreement are worth
# combining.

# %%
names = list(models)
top = [lists["live"][name][:, :10] for name in names]


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Mean share of the ten items in common."""
    return float(np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(one, other, strict=True)]))


shared = np.array([[agreement(one, other) for other in top] for one in top])
figure, axes = plt.subplots(figsize=(4.8, 4))
shown = axes.imshow(shared, cmap="Greens", vmin=0, vmax=1)
axes.set_xticks(range(4), names, rotation=30, ha="right")
axes.set_yticks(range(4), names)
for row in range(4):
    for column in range(4):
        axes.text(column, row, f"{shared[row, column]:.2f}", ha="center", va="center", fontsize=9)
axes.set_title("Agreement on `live`")
plt.show()
assert np.allclose(np.diag(shared), 1.0)

# %% [markdown]
# ## Catalogue coverage

# %%
ranked = int(split.eligible.sum())
shares = [list_metrics.coverage(lists["live"][name][:, :10], ranked) for name in names]
figure, axes = plt.subplots(figsize=(8, 2))
axes.barh(names, shares, color=COLOURS)
axes.set(title="Share of the ranked items in any list", xscale="log")
plt.show()
