"""The sections of a configuration: dataclasses with types, defaults and ranges. `conf/` only says what differs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mrl_jax import arms
from mrl_jax.arms import Arm
from mrl_jax.data import DataConfig
from mrl_jax.encoders import EncoderConfig
from mrl_jax.evaluate import EvaluationConfig
from mrl_jax.system.errors import at_least, limited, share
from mrl_jax.system.processes import DistributedConfig


@dataclass(frozen=True)
class LossConfig:
    """What is minimised; see `mrl_jax.losses`."""

    name: str = "cross_entropy"  # one of `mrl_jax.losses.LOSSES`
    temperature: float = limited(0.05, "0.01 ≤ value ≤ 1", lambda t: 0.01 <= t <= 1)  # τ that divides cosines
    learned_temperature: bool = False  # info_nce, sigmoid: learn τ, starting from temperature
    bias: float = -10.0  # sigmoid: number added to each logit, learned for each dim, starting from here
    symmetric: bool = True  # symmetric InfoNCE: also document → query
    mask_known: bool = True  # info_nce, sigmoid: equal texts, known positives and the query's own text are no negatives
    distillation: float = at_least(0.0, 0)  # weight of a loss in which the full width's similarities or answers teach
    shortlist: float = at_least(
        0.0, 0
    )  # weight of a loss in which the full width's neighbours in a batch teach prefixes
    shortlist_k: int | None = limited(None, "at least 1, or null", lambda k: k >= 1)  # how many neighbours; null: all
    shortlist_temperature: float = limited(0.05, "0.01 ≤ value ≤ 1", lambda t: 0.01 <= t <= 1)  # τ of loss.shortlist
    binary: float = at_least(
        0.0, 0
    )  # info_nce, sigmoid: weight of the loss with documents of one bit per coordinate, their signs
    teacher: str | None = None  # pairs: minilm, mpnet, a model folder or .npz (texts, vectors) whose similarities teach
    teacher_weight: float = at_least(1.0, 0)  # weight of the loss that the teacher gives, at every prefix
    guide: str | None = (
        None  # of pairs without scores: as teacher; what it finds nearer than the positive is no negative
    )
    guide_margin: float = limited(0.0, "-2 ≤ value ≤ 2", lambda m: -2 <= m <= 2)  # nor one at most so much farther
    supervised: bool = True  # with a teacher: learn from the pairs too; false: from its similarities alone
    mask_rate: float = limited(0.15, "more than 0 and at most 0.5", lambda rate: 0 < rate <= 0.5)  # mlm: share hidden
    whole_words: bool = False  # mlm: hide all tokens of a word together
    weights: tuple[float, ...] | None = None  # relative importance of each granularity; null: ones
    weighting: Literal["fixed", "uncertainty"] = "fixed"  # as given, or times a factor learned for each granularity
    prefix_gradient: float = limited(
        1.0, "0 ≤ value ≤ 1", lambda share: 0 <= share <= 1
    )  # share of the gradient of a longer prefix that reaches the next shorter one; 1: all of it
    sampled: int = at_least(2, 1)  # granularities that arm mrl_sampled trains in a step, drawn anew each time
    label_smoothing: float = share(0.0)  # share of the target spread evenly over the classes


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters follow gradients."""

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = limited(1e-3, "more than 0", lambda rate: rate > 0)  # at the end of warm-up
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # after warm-up; cosine and linear end at zero
    warmup: float = limited(
        0.0, "a share, 0 ≤ value ≤ 1", lambda w: 0 <= w <= 1
    )  # share of the steps with a rising rate
    weight_decay: float = at_least(1e-2, 0)  # decoupled for adamw, added to the gradient for sgd; matrices only
    momentum: float = share(0.9)  # sgd (Nesterov), and the first moment of adamw
    adaptivity: float = limited(
        1.0, "a share, 0 ≤ value ≤ 1", lambda p: 0 <= p <= 1
    )  # of adamw's division by the size of each gradient; the rest divides by the mean size in its array
    clip_norm: float | None = limited(None, "more than 0, or null", lambda norm: norm > 0)  # maximum gradient norm
    ema: float = share(0.0)  # decay of an average of the weights that is evaluated and kept, such as 0.9999; 0: none


@dataclass(frozen=True)
class TrainerConfig:
    """How long training takes, and what it does on the way."""

    epochs: float | None = 10.0  # passes over the training split; ignored when steps is given
    steps: int | None = limited(None, "at least 1, or null to use trainer.epochs", lambda n: n >= 1)  # optimiser steps
    batch_size: int = at_least(256, 1)  # examples per step, over all devices
    accumulate: int = 1  # parts that a batch is split into, their gradients averaged before one update
    population: Literal["auto", "loop", "vmap"] = "auto"  # members in turn, or together (auto: together off the CPU)
    arms_at_once: int | None = limited(None, "at least 1, or null", lambda n: n >= 1)  # per vmap; null: what fits
    precision: Literal["highest", "high", "default"] = (
        "highest"  # matmul precision of the training step, as JAX names it
    )
    no_duplicates: bool = False  # pairs without scores: where possible, no text stands twice in a batch
    evaluations: int = at_least(10, 1)  # times the validation split is scored; the best moment is kept
    log_every: int = at_least(20, 1)  # steps between lines of metrics.jsonl
    checkpoint_seconds: float = at_least(60.0, 0)  # between checkpoints of the training state; 0: at every log line

    def total_steps(self, examples: int) -> int:
        """Optimiser steps of a run on so many training examples: `steps`, or `epochs` passes."""
        if self.steps is not None:
            return self.steps
        return max(1, round((self.epochs or 0) * examples / self.batch_size))


@dataclass(frozen=True)
class TuneConfig:
    """How many settings each arm tries before it is trained with the best of them."""

    trials: int = limited(0, "0 to 10000", lambda n: 0 <= n <= 10_000)  # settings drawn for each arm; 0: as configured
    seed: int = at_least(0, 0)  # of the draws, which are the same for all arms
    space: Mapping[str, Any] | None = None  # key: [a,b,…], log low high or uniform low high; null: the learning rate


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on."""

    data: DataConfig
    encoder: EncoderConfig
    name: str  # of the experiment: the folder below results_dir
    width: int  # D, the embedding width
    nesting_dims: tuple[int, ...]  # ascending, ending at the width
    arms: tuple[str, ...]  # what is trained and compared; all: every arm that suits the loss
    seeds: int  # how many: 0 … seeds − 1
    nesting_layers: tuple[int, ...] | None = None  # ascending, ending at the encoder's; null: its full depth alone
    nesting_hidden: tuple[int, ...] | None = None  # units in feed-forward, ascending to intermediate; null: all alone
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    results_dir: str = "results"  # the folder of all runs
    run: str | None = None  # folder of this run; null: the date and time (or, with resume=true, the latest run)
    resume: bool | str = False  # continue a run, also to more seeds; auto: if there is one of that name
    recipe: str = "none"  # what chooses the keys that are auto: auto (trials on validation), fixed, none or its name
    open_keys: tuple[str, ...] = ()  # the keys that the recipe has yet to choose

    @property
    def population(self) -> tuple[Arm, ...]:
        """The trained arms of a seed."""
        layers, hidden = (len(sizes or ()) for sizes in (self.nesting_layers, self.nesting_hidden))
        return arms.expand(self.arms, self.nesting_dims, self.loss.weights, layers, hidden)


DEFAULTS = {  # sections without groups
    "loss": LossConfig,
    "trainer": TrainerConfig,
    "tune": TuneConfig,
    "evaluation": EvaluationConfig,
}
