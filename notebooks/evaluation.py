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
# # How models are evaluated
#
# Four common errors, each shown on the data: future interactions in the training rows, ties,
# sampled
# negatives, and figures without intervals.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from afterclick.settings import Settings
from afterclick.trends import HALF_LIVES_MS
from training.evaluation import list_metrics
from training.evaluation.measure import top_n
from training.evaluation.time_split import split_of
from training.models.popularity import trends_at
from training.protocols import PROTOCOLS, queries, sample

plt.rcParams.update(
    {"figure.figsize": (10, 3.2), "axes.spines.top": False, "axes.spines.right": False}
)
BLUE, GREEN, GREY, RED = "#5b8def", "#3bb273", "#9aa5b1", "#d64550"
split, _ = split_of(Settings(), Path(os.environ["DATASET"]), None)
eligible = np.flatnonzero(split.eligible).astype(np.int32)
print({protocol: len(queries(split, protocol)) for protocol in PROTOCOLS})

# %% [markdown]
# ## Error 1: a random split contains the future
# Popularity in a random part of *all* reviews, evaluated on the test period, compared with
# popularity
# before it.

# %%
rows, train = split.log.pairs(), split.train
random = np.random.default_rng(0)
past = train.item_counts()
leaky = rows.where(random.random(len(rows)) < len(train) / len(rows)).item_counts()
asked = sample(queries(split, "cold"), 3000, 1)


def hit_rate(score: np.ndarray) -> np.ndarray:
    """(queries,) whether the target is among the ten items with the highest scores."""
    shown = top_n(score[None, eligible].astype(np.float32), eligible, np.random.default_rng(1), 10)
    return np.isin(asked.first_target, shown).astype(float)


figure, axes = plt.subplots(figsize=(5, 3))
for name, counts, colour in (("before the cut", past, BLUE), ("random rows", leaky, RED)):
    found = hit_rate(counts)
    low, high = list_metrics.interval(found, 1)
    axes.bar(
        name,
        found.mean(),
        yerr=[[found.mean() - low], [high - found.mean()]],
        color=colour,
        capsize=4,
    )
axes.set(title="Popularity, HR@10 on new users", ylabel="HR@10")
plt.show()

# %% [markdown]
# ## Error 2: ties
# A score that is zero for all items. If ties keep the order of the rows, and the rows are ordered
# by
# popularity, a model without information looks good.

# %%
by_popularity = eligible[np.argsort(-past[eligible], kind="stable")]
nothing = np.zeros((1, len(eligible)), np.float32)
kept = np.isin(asked.first_target, by_popularity[:10]).mean()
broken = np.mean(
    [
        np.isin(
            asked.first_target, top_n(nothing, by_popularity, np.random.default_rng(seed), 10)
        ).mean()
        for seed in range(20)
    ]
)
print(f"constant score: HR@10 {kept:.4f} with ties in order, {broken:.4f} with ties at random")
assert broken < kept

# %% [markdown]
# ## Error 3: sampled negatives
# Among 100 random items, popularity looks many times better than among all items.

# %%
_, guarded = next(trends_at(split.log, np.array([split.cut_ms])))
scores = {
    name: guarded.values[:, n]
    for n, name in enumerate(HALF_LIVES_MS)
    if name in ("three_days", "week", "month", "quarter")
}
scores["all time"] = past.astype(float)
full, sampled = {}, {}
for name, score in scores.items():
    full[name] = hit_rate(score).mean()
    draws = random.choice(eligible, (len(asked.first_target), 100))
    better = (score[draws] > score[asked.first_target][:, None]).sum(axis=1)
    sampled[name] = (better < 10).mean()
figure, (left, right) = plt.subplots(1, 2)
for axes, found, title in ((left, full, "all items"), (right, sampled, "100 sampled items")):
    axes.bar(list(found), list(found.values()), color=BLUE)
    axes.set(title=f"HR@10 of decayed popularity, ranked among {title}")
    axes.tick_params(axis="x", rotation=20)
plt.show()
assert min(sampled.values()) > max(full.values())

# %% [markdown]
# ## Error 4: a figure without an interval
# Width of the 95 % interval of a hit rate by the number of queries.

# %%
found = hit_rate(scores["week"])
sizes = np.unique(np.geomspace(100, len(found), 12).astype(int))
bounds = np.array(
    [list_metrics.interval(found[random.choice(len(found), n, replace=False)], 1) for n in sizes]
)
figure, axes = plt.subplots()
axes.fill_between(sizes, bounds[:, 0], bounds[:, 1], color=GREEN, alpha=0.3)
axes.axhline(found.mean(), color=GREEN)
axes.set(
    xscale="log",
    title="HR@10 of a week's popularity, 95 % interval",
    xlabel="queries",
    ylabel="HR@10",
)
plt.show()
assert np.diff(bounds[-1]) < np.diff(bounds[0])
