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
# # The reviews
#
# Properties of the data: few reviews per user, a long tail of items, and a changing catalogue.
# `DATASET` names the folder or file.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from afterclick.trends import DAY_MS
from training.evaluation import reviews
from training.models.popularity import first_seen

plt.rcParams.update(
    {"figure.figsize": (10, 3.2), "axes.spines.top": False, "axes.spines.right": False}
)
BLUE, GREEN, GREY = "#5b8def", "#3bb273", "#9aa5b1"

data = reviews.load(Path(os.environ["DATASET"]))
rows = data.log.pairs()
users, items = rows.shape
print(f"{len(rows):,} reviews of {items:,} items by {users:,} users")
print(f"{data.log.trusted.mean():.0%} of them with an exact date")

# %% [markdown]
# ## Growth
# Most months have more reviews than the month before, so recent months dominate all counts.

# %%
month = rows.time_ms.astype("datetime64[ms]").astype("datetime64[M]")
months, count = np.unique(month, return_counts=True)
figure, axes = plt.subplots()
axes.fill_between(months.astype("datetime64[D]"), count, color=BLUE, alpha=0.8)
axes.set(title="Reviews per month", ylabel="reviews")
plt.show()

# %% [markdown]
# ## Sparse users, a long tail of items

# %%
per_user, per_item = rows.user_counts(), np.sort(rows.item_counts())[::-1]
figure, (left, right) = plt.subplots(1, 2)
bounds = np.array([1, 2, 3, 5, 10, 20, 50, 10**6])
share = np.histogram(per_user, bounds)[0] / users
labels = ["1", "2", "3-4", "5-9", "10-19", "20-49", "50 or more"]
left.bar(labels, share, color=GREEN)
left.set(title="Users by number of reviews", ylabel="share of users")
right.plot(np.arange(1, items + 1) / items, np.cumsum(per_item) / per_item.sum(), color=BLUE)
right.axhline(0.5, color=GREY, lw=0.8)
right.set(title="Items, most popular first", xlabel="share of items", ylabel="share of reviews")
plt.show()
half = np.searchsorted(np.cumsum(per_item), per_item.sum() / 2) / items
print(f"{(per_user == 1).mean():.0%} of the users have one review")
print(f"half of the reviews go to {half:.1%} of the items")

# %% [markdown]
# ## How fast popularity changes
# Overlap of the most reviewed items of two months. This is why trends beat all-time popularity.

# %%
TOP, BACK = 100, 18
last = months[-BACK - 1 : -1]
best = []
for one in last:
    counts = np.bincount(rows.item[month == one], minlength=items)
    best.append(set(np.argsort(-counts)[:TOP].tolist()))
overlap = np.array([[len(a & b) / TOP for b in best] for a in best])
figure, axes = plt.subplots(figsize=(5.5, 4.5))
shown = axes.imshow(overlap, cmap="Blues", vmin=0, vmax=1)
axes.set_xticks(range(0, BACK, 3), [str(m) for m in last[::3]], rotation=45)
axes.set_yticks(range(0, BACK, 3), [str(m) for m in last[::3]])
axes.set_title(f"Overlap of the {TOP} most reviewed items of two months")
figure.colorbar(shown)
plt.show()

# %% [markdown]
# ## New items
# Many reviews are of items that are new.

# %%
age = (rows.time_ms - first_seen(rows)[rows.item]) / DAY_MS
recent = rows.time_ms >= rows.time_ms[-1] - 90 * DAY_MS
figure, axes = plt.subplots()
axes.hist(
    age[recent] / 30,
    bins=48,
    range=(0, 96),
    color=GREEN,
    weights=np.full(recent.sum(), 1 / recent.sum()),
)
axes.set(
    title="Age of the item when it is reviewed (last 90 days)",
    xlabel="months",
    ylabel="share of reviews",
)
plt.show()

# %% [markdown]
# ## Time to the next review
# Most users who return do so on the same day: the list after the first event of a visit matters
# most.

# %%
order = np.lexsort((rows.time_ms, rows.user))
same = rows.user[order][1:] == rows.user[order][:-1]
gap = np.diff(rows.time_ms[order])[same] / DAY_MS
bounds = np.array([0, 1, 8, 31, 91, 366, 10**6])
share = np.histogram(gap, bounds)[0] / len(gap)
figure, axes = plt.subplots()
axes.bar(["same day", "a week", "a month", "a quarter", "a year", "later"], share, color=BLUE)
axes.set(title="Time to the same user's next review", ylabel="share")
plt.show()
assert np.isclose(share.sum(), 1.0)
