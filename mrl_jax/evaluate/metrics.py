"""`METRICS`: every metric of evaluation.csv, with its title and where it is shown.

The table after training prints the metrics marked `printed` (or those listed in `evaluation.print`). Reports plot the
metrics marked `compared` and compare the arms by them, with intervals; the report's table of every metric has them all.
"""

from typing import NamedTuple


class Metric(NamedTuple):
    """An entry of `METRICS`: how a metric is titled and where it is shown."""

    title: str  # in tables and plots
    printed: bool = False
    compared: bool = False


_NEIGHBOURS = {
    "knn_top1": Metric("nearest neighbour, top-1 accuracy", printed=True, compared=True),
    "map@10": Metric("nearest neighbours, MAP@10", printed=True),
    "precision@10": Metric("nearest neighbours, precision@10", printed=True),
}
_QUANTISED = {"int8": "8 bits", "bit": "1 bit"}
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
    "ndcg@10": Metric("search, nDCG@10", printed=True, compared=True),
    "mrr@10": Metric("search, MRR@10", printed=True),
    "recall@1": Metric("search, recall@1", printed=True),
    "recall@10": Metric("search, recall@10", printed=True, compared=True),
    "recall@100": Metric("search, recall@100", printed=True),
    "spearman": Metric("similarity, Spearman correlation", printed=True, compared=True),
    **{
        f"cascade_{rule}_{key}": Metric(f"{rule} cascade, {what}")
        for rule in ("greedy", "certified")
        for key, what in _CASCADE.items()
    },
    "cascade_certified": Metric("whether the cascade got its certificate"),
}

COMPARED = {name: metric.title for name, metric in METRICS.items() if metric.compared}
