"""An arm of a comparison is a row of loss weights; `ARMS` is the table of all arms.

With K nesting dims and both kinds of heads a row has 2K entries, K for the separate heads and K for the tied one:

    mrl          (1 … 1 | 0 … 0)      one head per granularity
    mrl_e        (0 … 0 | 1 … 1)      one tied head
    mrl_sampled  (1 … 1 | 0 … 0)      as mrl, but each step keeps a random few of the granularities
    mrl_…        (1 … 1 | 0 … 0)      as mrl, with settings of its own: the weight of another loss
    mrl_e_…      (0 … 0 | 1 … 1)      as mrl_e, likewise: how much of a longer prefix's gradient reaches a shorter one
    ff(k)        (0 … 1 … 0 | 0 … 0)  the independently trained fixed-size model of width m_k

Everything else (data order, initial parameters, dropout, optimiser, compiled step) is the same for the arms of a seed,
so their differences are paired by construction. The post-hoc arms are not trained: they compress the embeddings of
ff(K), or of mrl, see `evaluate/compress.py`. Nor are the untuned arms, the encoder as it was before training: its
prefixes and its principal directions, for pretrained weights. The baselines have no embedding: they are classifiers of
words or features and BM25, asked for by `evaluation.baseline` (`evaluate/baselines.py`). Their `dim` in evaluation.csv
is the run's width.

Where pairs are trained on there is no head: the row weighs the contrastive loss of each granularity, and no mrl_e. Nor
where tokens are predicted, by prefixes of the table of their vectors.

With `nesting_layers` a row has such weights for the embedding after each of these layers, [L, kinds, K]: all of them in
the nested arms, those of the full depth alone in ff and in

    mrl_dims     (0 … 0 | 0 … 0)      the encoder as a whole, nested over the dims of its embedding alone
                 (1 … 1 | 0 … 0)

With `nesting_hidden` it also has a share for each of these numbers of hidden units, [H]: how often a step is trained
with so many. The nested arms have equal shares, ff and mrl_dims all units in every step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from mrl_jax.system.errors import UserError, one_of


@dataclass(frozen=True)
class ArmType:
    """An entry of `ARMS`: how an arm comes to be, and how reports show it."""

    label: str  # in tables and plots
    color: str
    marker: Literal[
        "circle", "square", "pentagon", "triangle-up", "triangle-down", "plus", "x", "diamond", "star", "hexagon",
        "thin-diamond", "triangle-left", "triangle-right", "octagon", "hexagon2", "star-diamond",
        "triangle-ne", "triangle-nw", "triangle-sw", "triangle-se", "star-square", "star-triangle-up",
    ]  # fmt: skip
    origin: Literal["nested", "fixed", "compressed", "untuned", "classical"]
    head: Literal["separate", "tied"] | None = None  # that a trained arm reads where classes are learnt
    sampled: bool = False  # each step keeps a random few of the granularities
    whole_encoder: bool = False  # trained as a whole only, whatever `nesting_layers` and `nesting_hidden` are
    settings: Mapping[str, float] = field(default_factory=dict)  # by key of `rows`, what it has beside its loss weights
    in_all: bool = True  # whether `arms=all` stands for it too
    compression: str | None = None  # of `evaluate.compress`: what is made of an embedding
    compresses: str = "ff"  # the trained arm whose full-width embedding a compressed arm is made of
    baseline: bool = False  # nested arms are compared with it
    reads: Literal["text", "features"] | None = None  # the kind of data that a classical arm is for
    tasks: tuple[str, ...] = ("classes", "pairs", "scored pairs")  # what the losses that it goes with learn from


PAIR_TASKS = ("pairs", "scored pairs")
ALL_TASKS = ("classes", *PAIR_TASKS, "texts")

# Colours of Okabe and Ito, and some of Tol: told apart by colour-blind readers too. The order is that of reports.
ARMS: dict[str, ArmType] = {
    "mrl": ArmType("MRL", "#0072b2", "circle", "nested", "separate", tasks=ALL_TASKS),
    "mrl_e": ArmType("MRL-E", "#d55e00", "square", "nested", "tied", tasks=("classes",)),
    "mrl_sampled": ArmType("MRL sampled", "#56b4e9", "pentagon", "nested", "separate", sampled=True, tasks=ALL_TASKS),
    "mrl_dims": ArmType(
        "MRL, dims only",
        "#004488",
        "triangle-se",
        "nested",
        "separate",
        whole_encoder=True,
        in_all=False,
        tasks=("classes", *PAIR_TASKS),
    ),
    "mrl_distilled": ArmType(
        "MRL distilled",
        "#44aa99",
        "triangle-ne",
        "nested",
        "separate",
        settings={"loss.distillation": 1.0},
        in_all=False,
    ),
    "mrl_shortlist": ArmType(
        "MRL shortlist", "#aa4499", "triangle-sw", "nested", "separate", settings={"loss.shortlist": 1.0}, in_all=False
    ),
    "mrl_e_detached": ArmType(
        "MRL-E detached",
        "#225522",
        "star-triangle-up",
        "nested",
        "tied",
        settings={"loss.prefix_gradient": 0.0},
        in_all=False,
        tasks=("classes",),
    ),
    "mrl_binary": ArmType(
        "MRL binary",
        "#ddaa33",
        "star-square",
        "nested",
        "separate",
        settings={"loss.binary": 0.1},
        in_all=False,
        tasks=("pairs",),
    ),
    "ff": ArmType(
        "FF", "#009e73", "triangle-up", "fixed", "separate", whole_encoder=True, baseline=True, tasks=ALL_TASKS
    ),
    "truncated": ArmType(
        "truncated",
        "#e69f00",
        "triangle-down",
        "compressed",
        compression="truncated",
        baseline=True,
        tasks=ALL_TASKS,
    ),
    "random_subset": ArmType("random subset", "#999999", "plus", "compressed", compression="random_subset"),
    "random_projection": ArmType("random projection", "#000000", "x", "compressed", compression="random_projection"),
    "pca": ArmType("PCA", "#cc79a7", "diamond", "compressed", compression="pca", baseline=True),
    "pca_whitened": ArmType("PCA whitened", "#882255", "star", "compressed", compression="pca_whitened"),
    "csr": ArmType(
        "CSR",
        "#997700",
        "triangle-nw",
        "compressed",
        compression="csr",
        in_all=False,
        tasks=("classes",),
    ),
    "mrl_pca": ArmType(
        "MRL, rotated", "#6699cc", "star-diamond", "compressed", compression="rotated", compresses="mrl"
    ),
    "untuned": ArmType(
        "untuned", "#8c6d31", "hexagon", "untuned", compression="truncated", baseline=True, tasks=PAIR_TASKS
    ),
    "untuned_pca": ArmType(
        "untuned, PCA", "#c49c94", "thin-diamond", "untuned", compression="pca", baseline=True, tasks=PAIR_TASKS
    ),
    "tfidf": ArmType("TF-IDF + LR", "#332288", "octagon", "classical", baseline=True, reads="text", tasks=("classes",)),
    "knn": ArmType(
        "TF-IDF + kNN", "#999933", "triangle-left", "classical", baseline=True, reads="text", tasks=("classes",)
    ),
    "logistic": ArmType("LR", "#661100", "hexagon2", "classical", baseline=True, reads="features", tasks=("classes",)),
    "bm25": ArmType("BM25", "#117733", "triangle-right", "classical", baseline=True, reads="text", tasks=("pairs",)),
}


def names_of(*origins: str) -> tuple[str, ...]:
    """The names of the arms that come to be in one of these ways, in the order of `ARMS`."""
    return tuple(name for name, arm in ARMS.items() if arm.origin in origins)


def counterpart(name: str) -> str | None:
    """The arm that an arm is but for its settings; None where it has none."""
    plain = (other for other in names_of("nested") if not ARMS[other].settings and ARMS[other].head == ARMS[name].head)
    return next(plain) if ARMS[name].settings else None


NAMES = names_of("nested", "fixed", "compressed", "untuned")
NESTED = names_of("nested")
TRAINED = names_of("nested", "fixed")
POSTHOC = names_of("compressed")
UNTUNED = names_of("untuned")
CLASSICAL = names_of("classical")
COMPRESSED = {"ff": "fixed-size model", "mrl": "nested model"}  # the trained arms that post-hoc arms are made of


class Row(NamedTuple):
    """What makes a member what it is, as arguments of the compiled step: its arm, and settings of its own."""

    weights: Any  # of the losses, float32 [kinds, K]; with nesting layers [L, kinds, K]
    sampled: Any  # bool []: keep a random subset of the granularities each step
    settings: Mapping[str, Any] = {}  # by key of `rows`, float32 []
    hidden: Any = None  # how often a step trains each of the nesting hidden widths, float32 [H]; None: there are none


@dataclass(frozen=True)
class Arm:
    """One trained arm: its name, the head that it reads and its weight for each granularity, [K]."""

    name: str
    head: str
    weights: tuple[float, ...]
    width: int | None = None  # the fixed width of an `ff` arm; None for nested arms
    layers: tuple[float, ...] = ()  # its weight for each nesting layer, [L]; none where there are no such layers
    hidden: tuple[float, ...] = ()  # its share of the steps for each nesting hidden width, [H], likewise

    @property
    def label(self) -> str:
        return self.name if self.width is None else f"{self.name}{self.width}"

    def trained(self, dims: Sequence[int]) -> tuple[int, ...]:
        """The nesting dims at which this arm has a trained classifier."""
        return tuple(m for m, weight in zip(dims, self.weights, strict=True) if weight > 0)

    def trained_sizes(self, layers: Sequence[int], hidden: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The nesting layers and the nesting hidden widths that this arm was trained with."""
        of_layers, of_hidden = zip(layers, self.layers, strict=True), zip(hidden, self.hidden, strict=True)
        return tuple(n for n, weight in of_layers if weight > 0), tuple(n for n, share in of_hidden if share > 0)

    def row(self, kinds: Sequence[str]) -> Row:
        """The arm's arguments of the compiled step in a program that holds the head kinds `kinds`."""
        weights = np.stack([np.asarray(self.weights, np.float32) * (kind == self.head) for kind in kinds])
        if self.layers:
            weights = np.multiply.outer(np.asarray(self.layers, np.float32), weights)
        hidden = np.asarray(self.hidden, np.float32) if self.hidden else None
        return Row(weights, np.asarray(ARMS[self.name].sampled), hidden=hidden)


@dataclass(frozen=True)
class Member:
    """One member of a population: an arm trained from one seed, with settings of its own where it is tuned."""

    arm: Arm
    seed: int
    settings: tuple[tuple[str, float], ...] = ()  # key of `rows` and value
    trial: int | None = None  # of tuning; None: a member of the comparison

    @property
    def label(self) -> str:
        return f"{self.arm.label}-seed{self.seed}" if self.trial is None else f"{self.arm.label}-trial{self.trial}"

    def row(self, kinds: Sequence[str]) -> Row:
        """As `Arm.row`, with the settings."""
        return self.arm.row(kinds)._replace(settings={key: np.float32(value) for key, value in self.settings})


def expand(
    names: Sequence[str], dims: Sequence[int], weights: Sequence[float] | None = None, layers: int = 0, hidden: int = 0
) -> tuple[Arm, ...]:
    """The trained arms among `names`: one per nested arm, one per nesting dim of a fixed-size arm.

    `all` stands for every arm that is suited to classes. `weights` [K] is the relative importance of the granularities
    in the nested arms (ones by default). `layers` is the number of nesting layers, `hidden` that of nesting
    hidden widths; 0 where there are none.
    """
    nested = tuple(float(c) for c in weights) if weights is not None else (1.0,) * len(dims)
    arms: list[Arm] = []
    for name in _named(names):
        kind = ARMS[name]
        if kind.head is None:
            continue
        last = kind.whole_encoder
        of_layers = tuple(float(not last or i == layers - 1) for i in range(layers))
        shares = tuple(float(i == hidden - 1) if last else 1 / hidden for i in range(hidden))
        if kind.origin == "nested":
            arms.append(Arm(name, kind.head, nested, None, of_layers, shares))
        else:
            one_hot = np.eye(len(dims)).tolist()
            arms += [
                Arm(name, kind.head, tuple(row), m, of_layers, shares) for m, row in zip(dims, one_hot, strict=True)
            ]
    return tuple(dict.fromkeys(arms))


def own_settings(arms: Sequence[Arm], configured: Callable[[str], float]) -> dict[str, tuple[tuple[str, float], ...]]:
    """By label of each arm, the settings that any of `arms` has beside its loss weights; where it has none itself, they
    are as `configured`. All rows of a program have the same keys."""
    keys = dict.fromkeys(key for arm in arms for key in ARMS[arm.name].settings)
    return {arm.label: tuple((key, ARMS[arm.name].settings.get(key, configured(key))) for key in keys) for arm in arms}


def posthoc(names: Sequence[str]) -> tuple[str, ...]:
    """The post-hoc arms among `names`. Raises `UserError` when the models that they compress are missing."""
    named = _named(names)
    chosen = tuple(name for name in POSTHOC if name in named)
    for source, model in COMPRESSED.items():
        made = [name for name in chosen if ARMS[name].compresses == source]
        if made and source not in named:
            raise UserError(
                f"arms={list(names)} lacks {source}: the full-width {model} is what {', '.join(made)} "
                f"compress{'es' if len(made) == 1 else ''}; add it"
            )
    return chosen


def made_of(arm: Arm, names: Sequence[str], width: int) -> tuple[str, ...]:
    """The post-hoc arms among `names` that compress the embeddings of the trained arm, `width` wide."""
    if arm.width not in (None, width):
        return ()
    return tuple(name for name in posthoc(names) if ARMS[name].compresses == arm.name)


def untuned(names: Sequence[str]) -> tuple[str, ...]:
    """The untuned arms among `names`."""
    return tuple(name for name in UNTUNED if name in _named(names))


def suited_to(*tasks: str) -> tuple[str, ...]:
    """What `arms=all` stands for where `tasks` are learnt from: classes, pairs, scored pairs or texts."""
    return tuple(name for name in NAMES if ARMS[name].in_all and {*tasks} <= {*ARMS[name].tasks})


def classical(chosen: str | Sequence[str] | None, task: str) -> tuple[str, ...]:
    """The baselines that `evaluation.baseline` names, in the order of `ARMS`; `all` stands for those that suit `task`.

    Raises `UserError` for a name that there is not, or that does not suit.
    """
    key, names = "evaluation.baseline", [chosen] if isinstance(chosen, str) else list(chosen or ())
    suited = [name for name in CLASSICAL if task in ARMS[name].tasks]
    for name in names:
        if one_of(key, name, (*CLASSICAL, "all", "none")) in CLASSICAL and name not in suited:
            raise UserError(f"{key}={name} is not for {task}; allowed: {', '.join([*suited, 'none'])}")
    if "none" in names and len(names) > 1:
        raise UserError(f"{key}=[{','.join(names)}] is not allowed; none stands alone")
    return tuple(name for name in suited if name in names or "all" in names)


def default_for(*tasks: str) -> tuple[str, ...]:
    """The one arm that is trained where none is named: MRL-E where there are heads to tie, else MRL."""
    return (next(name for name in ("mrl_e", "mrl") if {*tasks} <= {*ARMS[name].tasks}),)


def _named(names: Sequence[str]) -> Sequence[str]:
    for name in names:
        one_of("arms", name, (*NAMES, "all"))
    return suited_to("classes") if "all" in names else names


def kinds(arms: Sequence[Arm]) -> tuple[str, ...]:
    """The head kinds that a population needs, in a fixed order."""
    return tuple(kind for kind in ("separate", "tied") if any(arm.head == kind for arm in arms))
