"""Generate a small shop: items with titles, users with drifting preferences, and their reviews.

writes  file  <folder>/reviews.csv, items.csv

Each user prefers two or three shelves and has a budget; preferences change now and then. Each
purchase is a product that complements the previous one, a popular item, or (mostly) an item of a
preferred shelf, with favourite brands first. Within and across shelves, a user prefers items by
latent factors (`ingest/click_model.py`) that the catalogue does not show. Items launch over time
and sell best when new (long tail). The same seed gives the same files, byte for byte.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from afterclick.arrays import BoolArray, Float64Array, Int64Array
from afterclick.errors import BadInput
from ingest.click_model import DIMENSIONS, LATENT_STRENGTH, drawn_factors, of_length_one


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split("|"))


BRANDS = _words(
    "Aurelo|Brightwell|Cobalt|Dunmore|Everline|Fjordic|Gantry|Halcyon|Ibex|"
    "Juniper|Kestrel|Lumora|Marlow|Nordkap|Orbita|Pinecrest|Quill|Ravenna|"
    "Sundial|Tessera|Umbra|Vantage|Westmark|Zephyr"
)
QUALITIES = _words(
    "Classic|Compact|Pro|Lite|Plus|Travel|Studio|Everyday|Ultra|Essential|"
    "Heritage|Active|Silent|Eco|Premium|Mini"
)
FINISHES = _words("Black|White|Graphite|Silver|Forest Green|Navy|Sand|Copper|Red|Walnut")


@dataclass(frozen=True)
class Kind:
    """A product type: category path, usual price, and the type often bought next."""

    department: str
    shelf: str
    name: str
    price: float
    details: tuple[str, ...]
    goes_with: str | None


def _kinds(table: str) -> tuple[Kind, ...]:
    """Product types: lines `department > shelf`, each followed by `name; price; details; next`."""
    kinds: list[Kind] = []
    department = shelf = ""
    for line in table.strip().split("\n"):
        name, *values = line.strip().split("; ")
        if not values:
            department, shelf = name.split(" > ")
            continue
        goes_with = values[2] if len(values) > 2 else None
        details = _words(values[1])
        kinds.append(Kind(department, shelf, name, float(values[0]), details, goes_with))
    return tuple(kinds)


KINDS = _kinds("""
    Photography > Cameras
        Mirrorless Camera; 780; 24 MP|26 MP|45 MP; Prime Lens
        Instant Camera; 95; with Flash|with Timer; Camera Bag
        Action Camera; 240; 4K|5K|Waterproof; Camera Bag
    Photography > Accessories
        Prime Lens; 390; 35 mm|50 mm|85 mm; Camera Bag
        Camera Bag; 55; Sling|Backpack|Shoulder
        Tripod; 70; Carbon|Aluminium|Tabletop
    Audio > Headphones
        Over-Ear Headphones; 160; Noise Cancelling|Open Back|Wireless; Headphone Stand
        Earbuds; 80; True Wireless|Sport|In-Ear
        Headphone Stand; 25; Wood|Steel
    Audio > Hi-Fi
        Bookshelf Speakers; 280; Pair|Active Pair; Stereo Amplifier
        Turntable; 310; Belt Drive|Direct Drive; Bookshelf Speakers
        Stereo Amplifier; 420; 2 x 50 W|2 x 80 W
    Computing > Laptops
        Laptop; 950; 13 inch|14 inch|16 inch; Laptop Sleeve
        Laptop Sleeve; 30; 13 inch|14 inch|16 inch
        USB-C Dock; 120; 8 Ports|11 Ports
    Computing > Gaming
        Mechanical Keyboard; 110; Tactile|Linear|Clicky; Gaming Mouse
        Gaming Mouse; 60; Wireless|Ergonomic|Featherweight; Mouse Mat
        Mouse Mat; 20; XL|Hard|Soft
    Home > Coffee
        Espresso Machine; 430; Dual Boiler|Manual|Automatic; Coffee Grinder
        Coffee Grinder; 130; Burr|Hand; Coffee Beans
        Coffee Beans; 16; 1 kg Dark Roast|500 g Light Roast|1 kg Medium Roast
    Home > Smart Home
        Smart Bulb; 18; 2-Pack|4-Pack|Colour; Motion Sensor
        Motion Sensor; 28; Indoor|Outdoor
        Video Doorbell; 140; Wired|Battery; Smart Bulb
    Outdoors > Hiking
        Hiking Boots; 150; Mid|Low|Waterproof; Wool Socks
        Wool Socks; 18; 3 Pairs|Crew
        Trekking Backpack; 140; 35 L|50 L|65 L; Headlamp
    Outdoors > Camping
        Tent; 260; 1 Person|2 Person|4 Person; Sleeping Bag
        Sleeping Bag; 120; Down|3-Season; Headlamp
        Headlamp; 40; 400 lm|800 lm Rechargeable
    Sports > Cycling
        Bike Helmet; 75; Road|Urban|Trail; Bike Light
        Bike Light; 35; Front|Rear|Set
        Cycling Computer; 190; GPS|Compact; Bike Light
    Sports > Yoga
        Yoga Mat; 45; 4 mm|6 mm|Cork; Yoga Blocks
        Yoga Blocks; 18; Pair Cork|Pair Foam
        Foam Roller; 28; Smooth|Ridged
    """)

DAY_S = 86_400


@dataclass(frozen=True)
class ShopConfig:
    """Size of the generated shop."""

    users: int = 2_000
    items: int = 800
    events: int = 40_000
    days: int = 540
    """Days from the first review to the last."""
    end: datetime = datetime(2025, 6, 30, 18, 0, tzinfo=UTC)
    """Approximate time of the last review."""
    seed: int = 7


@dataclass(frozen=True)
class ShopSummary:
    """Counts of the generated files."""

    users: int
    items: int
    events: int
    seed: int


@dataclass(frozen=True)
class _Catalogue:
    """Items as arrays. `mate` is the complementary kind, or −1. Days count from the start."""

    titles: list[str]
    kind: Int64Array
    shelf: Int64Array
    brand: Int64Array
    price: Float64Array
    quality: Float64Array
    appeal: Float64Array
    launched: Float64Array
    mate: Int64Array
    latent: Float64Array
    """(items, DIMENSIONS)"""


def generate_shop(folder: Path, config: ShopConfig = ShopConfig()) -> ShopSummary:
    """Write a shop into a folder. Raises BadInput for an impossible size."""
    if config.items < len(KINDS) or config.users < 1 or config.days < 1:
        raise BadInput(f"a shop needs at least 1 user, 1 day and {len(KINDS)} items")
    if not config.users <= config.events <= config.users * config.items // 4:
        raise BadInput("events: at least one per user, and at most a quarter of users times items")
    random = np.random.default_rng(config.seed)
    catalogue = _make_items(random, config)
    rows = _Shoppers(random, config, catalogue).reviews()
    folder.mkdir(parents=True, exist_ok=True)
    _write_items(folder / "items.csv", catalogue)
    _write_reviews(folder / "reviews.csv", rows, config)
    users = len({user for _, user, _, _ in rows})
    return ShopSummary(users, config.items, len(rows), config.seed)


def _make_items(random: np.random.Generator, config: ShopConfig) -> _Catalogue:
    n = config.items
    names = [kind.name for kind in KINDS]
    shelves = list(dict.fromkeys((kind.department, kind.shelf) for kind in KINDS))
    kind = np.concatenate([np.arange(len(KINDS)), random.integers(0, len(KINDS), n - len(KINDS))])
    brand = random.integers(0, len(BRANDS), n)
    # long tail: the appeal of the k-th item is proportional to k^-0.65
    appeal = 1.0 / random.permutation(np.arange(1, n + 1)) ** 0.65
    early = random.random(n) < 0.6
    usual = np.array([k.price for k in KINDS])[kind]
    return _Catalogue(
        titles=[_title(random, int(k), int(b)) for k, b in zip(kind, brand, strict=True)],
        kind=kind,
        shelf=np.array([shelves.index((k.department, k.shelf)) for k in KINDS])[kind],
        brand=brand,
        price=np.round(usual * np.exp(random.normal(0, 0.35, n))) - 0.01,
        quality=random.normal(0, 0.5, n),
        appeal=appeal,
        launched=np.where(early, 0.0, random.uniform(0, config.days * 0.95, n)),
        mate=np.array([names.index(k.goes_with) if k.goes_with else -1 for k in KINDS]),
        latent=np.array([drawn_factors(_item_id(number)) for number in range(n)]),
    )


def _title(random: np.random.Generator, kind: int, brand: int) -> str:
    what = KINDS[kind]
    quality, finish, detail = (
        str(random.choice(words)) for words in (QUALITIES, FINISHES, what.details)
    )
    return f"{BRANDS[brand]} {quality} {what.name}, {detail}, {finish}"


Review = tuple[float, int, int, int]  # day, user, item, stars


class _Shoppers:
    """Users and their purchases."""

    def __init__(
        self, random: np.random.Generator, config: ShopConfig, catalogue: _Catalogue
    ) -> None:
        self.random, self.config, self.items = random, config, catalogue
        self.shelves = int(catalogue.shelf.max()) + 1
        self._pulls: dict[int, Float64Array] = {}

    def reviews(self) -> list[Review]:
        """All reviews in time order."""
        activity = self._activity()
        rows = [
            row for user, count in enumerate(activity) for row in self._one_user(user, int(count))
        ]
        return sorted(rows)

    def _activity(self) -> Int64Array:
        """(users,) reviews per user: log-normal, at least one, `events` in total."""
        config, random = self.config, self.random
        weights = random.lognormal(0, 1.0, config.users)
        most = config.items // 4
        counts = np.ones(config.users, np.int64)
        while (left := config.events - int(counts.sum())) > 0:
            room = np.where(counts < most, weights, 0.0)
            counts += np.minimum(random.multinomial(left, room / room.sum()), most - counts)
        return counts

    def _one_user(self, user: int, count: int) -> list[Review]:
        random, items = self.random, self.items
        days = self._days(count)
        taste, liking = self._taste(), self._liking()
        bought = np.zeros(len(items.kind), bool)
        last_kind = -1
        rows: list[Review] = []
        for number, day in enumerate(days):
            if number and random.random() < 0.04:  # preferences drift
                taste = 0.5 * taste + 0.5 * self._taste()
            item = self._choose(int(day), taste, liking, bought, last_kind)
            bought[item] = True
            last_kind = int(items.kind[item])
            rows.append((float(day), user, item, self._stars(item, taste)))
        return rows

    def _days(self, count: int) -> Float64Array:
        """(count,) review times: sessions of a few reviews, between joining and leaving."""
        random, days = self.random, self.config.days
        joined = days * random.random() ** 0.7 * 0.97
        stay = min(days - joined, random.exponential(days * 0.4) + 1)
        sessions = np.sort(random.uniform(joined, joined + stay, max(1, -(-count * 2 // 3))))
        picked = random.choice(sessions, count) + random.exponential(0.02, count)
        # activity peaks in the evening
        hour = np.clip(random.normal(0.78, 0.14, count), 0.02, 0.98)
        return np.minimum(np.sort(np.floor(picked) + 0.3 * (picked % 1) + 0.69 * hour), days - 1e-4)

    def _taste(self) -> Float64Array:
        """(shelves,) preference per shelf: two or three high, the rest low."""
        weights = np.full(self.shelves, 0.004)
        liked = self.random.choice(self.shelves, int(self.random.integers(2, 4)), replace=False)
        weights[liked] += self.random.dirichlet(np.full(len(liked), 2.0))
        return np.asarray(weights / weights.sum())

    def _liking(self) -> Float64Array:
        """(items,) weight of each item by favourite brands, budget and latent factors."""
        items = self.items
        brands = np.ones(len(BRANDS))
        brands[self.random.choice(len(BRANDS), 4, replace=False)] = 6.0
        dearer = np.exp(self.random.normal(0, 0.25) * np.log(items.price / np.median(items.price)))
        own = of_length_one(self.random.normal(0, 1, DIMENSIONS))
        latent = np.exp(LATENT_STRENGTH * items.latent @ own)
        return np.asarray(brands[items.brand] * dearer * latent)

    def _pull(self, day: int) -> Float64Array:
        """(items,) overall demand per item on a day; zero before launch."""
        if day not in self._pulls:
            age = day - self.items.launched
            fresh = 0.6 + np.exp(-np.maximum(age, 0) / 60.0)
            self._pulls[day] = np.where(age >= 0, self.items.appeal * fresh, 0.0)
        return self._pulls[day]

    def _choose(
        self,
        day: int,
        taste: Float64Array,
        liking: Float64Array,
        bought: BoolArray,
        last: int,
    ) -> int:
        items = self.items
        pull = np.where(bought, 0.0, self._pull(day))
        draw = self.random.random()
        mate = int(items.mate[last]) if last >= 0 else -1
        if mate >= 0 and draw < 0.3:
            demand = pull * (items.kind == mate) * liking
        elif draw > 0.93:
            demand = pull  # popularity only
        else:
            demand = pull * taste[items.shelf] * liking
        if not demand.any():
            demand = pull
        sums = np.cumsum(demand)
        return int(np.searchsorted(sums, self.random.random() * sums[-1], side="right"))

    def _stars(self, item: int, taste: Float64Array) -> int:
        fit = 0.6 if taste[self.items.shelf[item]] > 0.1 else -0.5
        raw = 3.7 + fit + self.items.quality[item] + self.random.normal(0, 0.8)
        return int(np.clip(round(raw), 1, 5))


def _write_items(path: Path, catalogue: _Catalogue) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("item_id", "title", "categories", "brand", "price"))
        for number, title in enumerate(catalogue.titles):
            kind = KINDS[catalogue.kind[number]]
            path_of = f"{kind.department},{kind.shelf},{kind.name}"
            brand = BRANDS[catalogue.brand[number]]
            writer.writerow(
                (_item_id(number), title, path_of, brand, f"{catalogue.price[number]:.2f}")
            )


def _write_reviews(path: Path, rows: list[Review], config: ShopConfig) -> None:
    start = config.end.timestamp() - config.days * DAY_S
    with path.open("w", encoding="utf-8") as file:
        file.write("user_id,item_id,rating,timestamp\n")
        for day, user, item, stars in rows:
            file.write(f"u{user + 1:05},{_item_id(item)},{stars},{int(start + day * DAY_S)}\n")


def _item_id(number: int) -> str:
    return f"i{number + 1:05}"
