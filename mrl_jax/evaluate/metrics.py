"""`METRICS` and `FAMILIES`: every metric of evaluation.csv, with its title and where it is shown.

The table after training prints the metrics marked `printed` (or those listed in `evaluation.print`). Reports plot the
metrics marked `compared` and compare the arms by them, with intervals; the report's table of every metric has them all.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from mrl_jax.evaluate.corrupt import CORRUPTIONS
from mrl_jax.evaluate.parts import FREQUENCIES


class Metric(NamedTuple):
    """An entry of `METRICS`: how a metric is titled and where it is shown."""

    title: str  # in tables and plots
    printed: bool = False
    compared: bool = False
    figure: str = "accuracy"  # that shows it, where it is compared
    partial: bool = False  # the mean over some of the examples; the outcomes of the others are nan


def _beyond(title: str, partial: bool = False) -> Metric:
    """A metric that is measured only where it is asked for, and then shown everywhere."""
    return Metric(title, True, True, "generalisation", partial)


_NEIGHBOURS = {
    "knn_top1": Metric("nearest neighbour, top-1 accuracy", printed=True, compared=True),
    "map@10": Metric("nearest neighbours, MAP@10", printed=True),
    "precision@10": Metric("nearest neighbours, precision@10", printed=True),
}
_QUANTISED = {"int8": "8 bits", "bit": "1 bit"}
_SEARCH = {
    "ndcg@10": Metric("search, nDCG@10", printed=True, compared=True),
    "mrr@10": Metric("search, MRR@10", printed=True),
    "recall@1": Metric("search, recall@1", printed=True),
    "recall@10": Metric("search, recall@10", printed=True, compared=True),
    "recall@100": Metric("search, recall@100", printed=True),
}
_AGREEMENT = {
    "overlap@10": Metric("search, overlap with the 10 best of the full width"),
    "rbo": Metric("search, rank-biased overlap with the full width"),
}
# Of a search by captions for pictures, what begins with this is the way back: queries are documents of the other.
TO_TEXT = "to_text_"
_CASCADE = {
    "top1": "top-1 accuracy",
    "dims": "dims of the classifier that answers",
    "cumulative_dims": "dims of all classifiers that were asked",
    "kflop": "thousand floating-point operations per input",
    "captured": "share of an oracle's saving",
    "share": "share of the inputs that leave at this dim",
}

METRICS: dict[str, Metric] = {
    "linear_top1": Metric("classifier, top-1 accuracy", printed=True, compared=True),
    "linear_top5": Metric("classifier, top-5 accuracy", printed=True),
    "refit_top1": Metric("classifier refitted on the embedding, top-1 accuracy"),
    "own_head_top1": Metric("the full-width model's own classifier, top-1 accuracy"),
    "ece": Metric("expected calibration error", printed=True),
    **_NEIGHBOURS,
    **{
        f"{key}_{name}": Metric(f"{metric.title}, database in {bits} per dim")
        for key, bits in _QUANTISED.items()
        for name, metric in _NEIGHBOURS.items()
    },
    **_SEARCH,
    **_AGREEMENT,
    **{
        f"{key}_{name}": Metric(f"{metric.title}, documents in {bits} per dim")
        for key, bits in _QUANTISED.items()
        for name, metric in (_SEARCH | _AGREEMENT).items()
    },
    "masked_top1": Metric("masked tokens, top-1 accuracy", printed=True, compared=True),
    "perplexity": Metric("masked tokens, exp of the mean log-loss per text", printed=True),
    **{
        f"{TO_TEXT}{name}": metric._replace(title=f"{metric.title}, of texts by images", compared=False)
        for name, metric in {**_SEARCH, "map@10": Metric("search, MAP@10")}.items()
    },
    "spearman": Metric("similarity, Spearman correlation", printed=True, compared=True),
    **{
        f"cascade_{rule}_{key}": Metric(f"{rule} cascade, {what}")
        for rule in ("greedy", "certified")
        for key, what in _CASCADE.items()
    },
    "cascade_certified": Metric("whether the cascade got its certificate"),
    **{
        f"{part}_top1": _beyond(f"classifier, {part} third of the classes by frequency, top-1 accuracy", partial=True)
        for part in FREQUENCIES
    },
    "superclass_top1": _beyond("classifier, super-class of the answer, top-1 accuracy"),
    "unknown_softmax_auroc": _beyond("unknown classes by maximum softmax probability, AUROC"),
    "unknown_knn_auroc": _beyond("unknown classes by the 10th nearest neighbour, AUROC"),
    **{f"{name}_top1": _beyond(f"classifier, {entry.title}, top-1 accuracy") for name, entry in CORRUPTIONS.items()},
    **{
        f"{name}{strength}_top1": Metric(f"classifier, {entry.title} of {amount:g}, top-1 accuracy")
        for name, entry in CORRUPTIONS.items()
        for strength, amount in enumerate(entry.strengths, 1)
    },
}

FAMILIES: dict[str, Metric] = {  # metrics whose names hold a number {n}
    "few{n}_top1": _beyond("nearest class mean of {n} examples per class, top-1 accuracy"),
    "few{n}_logistic_top1": _beyond("logistic regression on {n} examples per class, top-1 accuracy"),
    **{
        f"{part}{{n}}_{name}": METRICS[name]._replace(title=f"{METRICS[name].title}, {where}")
        for part, where in (("layer", "after {n} layers"), ("hidden", "with {n} hidden units"))
        for name in ("linear_top1", "knn_top1", "ndcg@10", "recall@10", "spearman")
    },
}

COMPARED = {name: metric.title for name, metric in METRICS.items() if metric.compared}


def find(name: str) -> Metric | None:
    """The metric of this name, from `METRICS` or one of `FAMILIES`; None where there is none."""
    number = re.search("[1-9][0-9]*", name)
    if name in METRICS or number is None:
        return METRICS.get(name)
    family = FAMILIES.get(name.replace(number[0], "{n}", 1))
    if family is None:
        return None
    title = re.sub(r"\b1 (example|layer|hidden unit)s\b", r"1 \1", family.title.format(n=number[0]))
    return family._replace(title=title)


def title(name: str) -> str:
    """What a metric is called in tables and plots."""
    return found.title if (found := find(name)) else name


def ordered(names: Iterable[str]) -> list[str]:
    """The names in the order of `METRICS`, then of `FAMILIES`, then those that are in neither, by name."""
    order = {name: position for position, name in enumerate(METRICS)}

    def place(name: str) -> tuple[int, int, str]:
        digits = re.search("[0-9]+", name)
        number = int(digits[0]) if digits and name not in METRICS else 0
        return order.get(name, len(order) + (find(name) is None)), number, name

    return sorted(set(names), key=place)
