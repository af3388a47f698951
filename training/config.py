"""The configuration of a whole model: one recipe for what is served and what is evaluated.

A preset names the values that trade quality for training time:

| | `fast` | `full` |
|---|---|---|
| past cuts that the ranker learns from | 1 | 5 |
| queries of each cut | 6,000 | 12,000 |
| epochs of the sequence model, at most | 3 | 6 |
| epochs of NCF | 1 | 2 |
| engine of ALS | `implicit` | Spark |

`full` is the default of the pipeline and of `afterclick evaluate`; `make demo` trains with `fast`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from afterclick.errors import BadInput
from afterclick.quarantine import ESTABLISHED_DAYS, QuarantineLimits
from afterclick.settings import Settings, TrainingSettings

PRESETS: dict[str, dict[str, int]] = {
    "fast": {"tower_epochs": 3, "ncf_epochs": 1, "ranker_cuts": 1, "ranker_queries": 6_000},
    "full": {"tower_epochs": 6, "ncf_epochs": 2, "ranker_cuts": 5, "ranker_queries": 12_000},
}
Engine = Literal["spark", "implicit"]
ENGINES: dict[str, Engine] = {"fast": "implicit", "full": "spark"}
"""Preset → engine of ALS. Spark's costs 50 s of CPU on 500,000 interactions, `implicit` 2 s."""


@dataclass(frozen=True)
class AlsConfig:
    """Alternating least squares for implicit feedback."""

    rank: int = 64
    """Latent factors."""
    reg: float = 0.1
    """Spark's regParam; about λ/α₀ of iALS, per interaction."""
    alpha: float = 10.0
    """Confidence of an interaction of weight 1; about 1/α₀ of iALS."""
    iterations: int = 10
    """Passes over users and items."""
    seed: int = 42
    core: int = 5
    """Factorise the k-core with this k; other users and items follow by a half step."""
    engine: Engine = "spark"


@dataclass(frozen=True)
class NeighbourConfig:
    """Item-item neighbours and the random walk over them."""

    count: int = 100
    """Neighbours of each item."""
    shrink: float = 2.0
    """Added to the items' counts, so that one shared user of two rare items proves little."""
    steps: int = 20
    """Neighbours of each kind that the random walk may step to."""
    half_life_days: float | None = 180.0
    """An interaction this much older than the newest counts half; None: no decay."""
    max_group: int = 100
    """Only the newest interactions of a user, or of a user's day, form pairs."""


@dataclass(frozen=True)
class TransitionConfig:
    """The transition graph: see training/models/transition_graph.py."""

    count: int = 50
    """Targets of each item."""
    max_lag: int = 50
    """Positions between the two items of a pair at most."""
    lag_power: float = 0.5
    """A pair with lag l counts l^-lag_power."""
    user_power: float = 0.15
    """A pair of a user with n items counts n^-user_power."""
    source_power: float = 0.3
    """An item with n interactions divides its scores by n^source_power."""
    back: float = 0.4
    """Weight of the reverse direction, from an item to those before it."""
    recent: int = 5
    """Newest items of a history that are scored."""
    decay: float = 0.6
    """An item of the history weighs this much less than the next newer one."""


@dataclass(frozen=True)
class TowerConfig:
    """The sequence model, whose user and item vectors are the two towers."""

    dim: int = 64
    """Width of the block and of the vectors."""
    heads: int = 2
    """Attention heads."""
    temperature: float = 0.1
    """Divides the cosines."""
    dropout: float = 0.4
    """Of the inputs and of both residual branches."""
    drop_item: float = 0.1
    """Share of the items with content whose embedding a batch drops."""
    rate: float = 0.002
    """Adam's learning rate."""
    epochs: int = 6
    """Maximum."""
    patience: int = 3
    """Epochs without a better validation score after which the training ends."""
    seconds: float = 600.0
    """Time budget: no epoch starts that would end later, and none goes on beyond it."""
    validation: int = 2000
    """Users, at most one in 10, whose newest item is held out for the validation."""
    tokens: int = 1000
    """Targets per batch."""
    length: int = 20
    """Targets of a window of a history, at most."""
    uniform: int = 512
    """Uniform negatives in addition to the batch's own items."""
    half_life_days: float = 365.0
    """A target this much older than the newest has half the weight."""
    min_interactions: int = 5
    """Interactions an item needs for an embedding."""
    warm_start: bool = False
    """Embeddings of items that the champion knows begin as its vectors."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: CUDA if there is a device. Only on a CPU is a seed exact."""
    threads: int = 1
    """torch's threads; with two, beside other work, training costs seven times the CPU time."""
    seed: int = 42


@dataclass(frozen=True)
class NcfConfig:
    """The served NCF."""

    dim: int = 64
    """Width of the product's embeddings."""
    hidden: int = 16
    """Width of the MLP's first layer."""
    temperature: float = 0.12
    """Divides the product of unit vectors."""
    dropout: float = 0.1
    """Share of a history's items dropped at random, except the newest."""
    rate: float = 0.003
    """Adam's learning rate at the start; it falls to zero."""
    decay: float = 0.04
    """AdamW's weight decay per epoch."""
    epochs: int = 2
    batch: int = 1024
    """Fewer in a small log, which then has MIN_STEPS in an epoch."""
    sample: int = 512
    """Negatives of a batch."""
    deep_sample: int = 128
    """Of these, negatives that the MLP scores."""
    half_life_days: float = 365.0
    """A target this much older than the newest is drawn half as often."""
    min_interactions: int = 5
    """Interactions an item needs to be learned."""
    threads: int = 1
    """torch's threads."""
    seed: int = 42


@dataclass(frozen=True)
class RankerConfig:
    """LambdaMART over the candidates of past cuts."""

    cuts: int = 5
    """Past cuts, each a period before the next."""
    horizon_days: int = 45
    """Longest period after a cut that its queries come from."""
    horizon_span: float = 1 / 3
    """At most this share of the log's time up to the end of the period, so that young shops learn
    a ranker."""
    horizon_events: float = 0.25
    """At most this share of the log's events up to the end of the period, so that shops that grow
    fast do."""
    queries: int = 12_000
    """Maximum of queries per cut."""
    negatives: int = 50
    """Random candidates that each target is compared with."""
    list_weight: float = 1.0
    """Weight of a click in a served list relative to a target; 0: learn from targets only."""
    trees: int = 120
    leaves: int = 31
    """Of a tree, at most 32."""
    min_rows: int = 100
    """Rows that a leaf needs."""
    learning_rate: float = 0.1
    columns: float = 0.7
    """Share of the features that each tree chooses from."""
    min_interactions: int = 5
    """Interactions an item needs to be ranked."""
    threads: int = 1
    seed: int = 42


@dataclass(frozen=True)
class ReplayConfig:
    """The settings of serving that decide what it knows of users and trends."""

    limits: QuarantineLimits = field(default_factory=QuarantineLimits)
    """Limits on the votes of new accounts."""
    established_days: float = ESTABLISHED_DAYS
    """Days from the first event until a user is established."""
    history_length: int = 200
    """Events in a user's history."""
    approved: tuple[str, ...] = ()
    """Items that administrators exempt from the limits."""

    @classmethod
    def of(cls, settings: Settings, approved: Iterable[str] = ()) -> ReplayConfig:
        """What streaming and serving are set to; `approved` are item ids."""
        serving, stream = settings.serving, settings.stream
        return cls(
            QuarantineLimits(serving.quarantine_max_ratio, serving.quarantine_allowance),
            stream.established_days,
            stream.history_length,
            tuple(sorted(approved)),
        )


@dataclass(frozen=True)
class ModelConfig:
    """Everything a model is fitted with."""

    als: AlsConfig = field(default_factory=AlsConfig)
    neighbours: NeighbourConfig = field(default_factory=NeighbourConfig)
    transitions: TransitionConfig = field(default_factory=TransitionConfig)
    towers: TowerConfig | None = field(default_factory=TowerConfig)
    """None: no sequence model."""
    ncf: NcfConfig | None = field(default_factory=NcfConfig)
    """None: no NCF."""
    ranker: RankerConfig = field(default_factory=RankerConfig)
    content: str = "tfidf"
    """How titles and categories become vectors: `tfidf`, `sbert` or `sbert:NAME`."""
    min_interactions: int = 5
    """Items with fewer interactions get neither factors nor neighbours."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """What serving knows of users and trends; also limits the events that models learn from."""

    @classmethod
    def of(
        cls,
        settings: Settings,
        preset: str | None = None,
        engine: str | None = None,
        approved: Iterable[str] = (),
    ) -> ModelConfig:
        """The configuration of a preset (default: the settings' own) with the settings' overrides.

        `engine` of ALS: `spark` or `implicit`, by default the preset's. `approved`: ids of items
        exempt from quarantine. Raises BadInput for an unknown preset or engine.
        """
        training = settings.training
        preset = preset or training.preset
        if preset not in PRESETS:
            raise BadInput(f"--preset {preset!r}: expected {' or '.join(PRESETS)}")
        if engine not in (None, *ENGINES.values()):
            raise BadInput(f"--engine {engine!r}: expected implicit or spark")
        overrides = training.model_dump(include=set(PRESETS[preset]), exclude_none=True)
        chosen = PRESETS[preset] | overrides
        shared: dict[str, Any] = {
            "min_interactions": training.min_interactions,
            "seed": training.seed,
        }
        als = AlsConfig(
            **training.model_dump(include={"rank", "reg", "alpha", "iterations", "seed", "core"}),
            engine=engine or ENGINES[preset],
        )
        epochs, ncf_epochs = chosen["tower_epochs"], chosen["ncf_epochs"]
        return cls(
            als=als,
            towers=_towers(training, epochs) if epochs else None,
            ncf=NcfConfig(epochs=ncf_epochs, **shared) if ncf_epochs else None,
            ranker=RankerConfig(
                cuts=chosen["ranker_cuts"],
                queries=chosen["ranker_queries"],
                horizon_days=training.ranker_horizon_days,
                **shared,
            ),
            content=training.content,
            min_interactions=training.min_interactions,
            replay=ReplayConfig.of(settings, approved),
        )

    def with_seed(self, seed: int) -> ModelConfig:
        """The same configuration with another seed in every part."""
        towers = replace(self.towers, seed=seed) if self.towers is not None else None
        ncf = replace(self.ncf, seed=seed) if self.ncf is not None else None
        als, ranker = replace(self.als, seed=seed), replace(self.ranker, seed=seed)
        return replace(self, als=als, towers=towers, ncf=ncf, ranker=ranker)

    def preset_values(self) -> dict[str, int | str]:
        """The values that a preset sets, by the names of the settings, and the engine of ALS."""
        return {
            "als_engine": self.als.engine,
            "tower_epochs": self.towers.epochs if self.towers is not None else 0,
            "ncf_epochs": self.ncf.epochs if self.ncf is not None else 0,
            "ranker_cuts": self.ranker.cuts,
            "ranker_queries": self.ranker.queries,
        }

    def parameters(self) -> dict[str, Any]:
        """Every value, nested by part: for manifests, MLflow and `evaluate --json`."""
        return asdict(self)


def _towers(training: TrainingSettings, epochs: int) -> TowerConfig:
    return TowerConfig(
        epochs=epochs,
        seconds=training.tower_seconds,
        warm_start=training.tower_warm_start,
        device=training.device,
        min_interactions=training.min_interactions,
        seed=training.seed,
    )
