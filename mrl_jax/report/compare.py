"""What a study says: arms compared pair by pair, what nesting costs, what an oracle would save, who needs more dims.

Everything is computed from per-example outcomes of the test split, at the nesting dims; `sections.py`, `contrasts.py`
and `figures.py` show it. Accuracies are shares in [0, 1].
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, assert_never

import numpy as np

from mrl_jax.arms import counterpart, names_of
from mrl_jax.report import statistics
from mrl_jax.report.statistics import Crossover, Difference, Interval
from mrl_jax.report.study import Series, Study


class Precision(NamedTuple):
    """How the coordinates of a database are stored."""

    prefix: str  # of the metrics that were measured with it
    bytes_per_dim: float


PRECISIONS = {"float32": Precision("", 4.0), "int8": Precision("int8_", 1.0), "1 bit": Precision("bit_", 0.125)}
RULES = ("greedy", "certified")  # of cascades


class Comparison(NamedTuple):
    """Arm `a` minus arm `b`, paired by seed and test example, at the nesting dims that both have."""

    a: Series
    b: Series
    differences: list[Difference]
    crossover: Crossover
    tax: Difference | None  # b − a at full width: what nesting costs there; None where it was not measured

    @property
    def between_runs(self) -> bool:
        """Whether one arm is compared in two variants."""
        return self.a.arm == self.b.arm

    @property
    def against(self) -> str:
        """What the second arm stands for: comparisons of one kind are shown together."""
        return f"minus {self.b.variant if self.between_runs else self.b.name}"


Comparisons = Mapping[str, Mapping[str, Comparison]]  # metric → label (`MRL − FF`) → comparison


def pairs(study: Study) -> list[tuple[Series, Series]]:
    """What is compared: nested arms with the baselines, with MRL and with the arm that they are but for a setting, and
    each trained arm between variants."""
    chosen: list[tuple[Series, Series]] = []
    first = names_of("nested")[0]
    for variant in study.variants:
        present = [s for s in study.series if s.variant == variant]
        nested = [s for s in present if s.origin == "nested"]
        chosen += itertools.product(nested, [s for s in present if s.baseline])
        chosen += [(a, b) for a in nested for b in nested if b.arm == first != a.arm]
        chosen += [(a, b) for a in nested for b in nested if b.arm == counterpart(a.arm) != first]
    for arm in names_of("nested", "fixed"):
        same = [s for s in study.series if s.arm == arm]
        chosen += [(other, same[0]) for other in same[1:]]
    return chosen


def compare(study: Study, tick: Callable[[str], object] = lambda label: None) -> dict[str, dict[str, Comparison]]:
    """Every comparison of the study; `tick` is called with each label before its bootstrap.

    Nothing is compared on less than two test examples, or where outcomes were not kept.
    """
    comparisons: dict[str, dict[str, Comparison]] = {}
    for metric in study.compared:
        for a, b in pairs(study):
            x, y = nesting(study, a, fair(study, a, b, metric)), nesting(study, b, metric)
            if not x.keys() & y.keys() or next(iter(x.values())).shape[1] < 2:
                continue
            label = f"{a.label} − {b.label}"
            tick(label)
            comparisons.setdefault(metric, {})[label] = Comparison(
                a, b, statistics.differences(x, y), statistics.crossover(x, y), _tax(study, a, b, x, y)
            )
    return comparisons


def fair(study: Study, a: Series, b: Series, metric: str) -> str:
    """The metric of `a` to set against `metric` of `b`: post-hoc arms have a refitted classifier, so `a` gets one too
    (where it was measured), or the difference would be that of the classifiers."""
    refit = metric == "linear_top1" and b.origin == "compressed" != a.origin and study.values(a, "refit_top1")
    return "refit_top1" if refit else metric


def _tax(
    study: Study, a: Series, b: Series, x: dict[int, np.ndarray], y: dict[int, np.ndarray]
) -> statistics.Difference | None:
    """FF(D) − MRL(D): what the fixed-size model of full width is better by, where a nested arm is compared with one."""
    width = max(x, default=0)
    if b.origin != "fixed" or a.origin != "nested" or width not in y:
        return None
    return statistics.differences({width: y[width]}, {width: x[width]})[0]


def nesting(study: Study, series: Series, metric: str) -> dict[int, np.ndarray]:
    """The outcomes at the nesting dims, [S, n] each."""
    return {dim: v for dim, v in study.outcomes(series, metric).items() if dim in study.dims}


def verdict(comparison: Comparison) -> str:
    """Where the first arm of a comparison wins, as a sentence."""
    a, b, crossover = comparison.a.label, comparison.b.label, comparison.crossover
    match crossover.verdict:
        case "wins_below":
            return f"{a} wins below {_dims(crossover)}, not above."
        case "wins_above":
            return f"{a} wins above {_dims(crossover)}, not below."
        case "wins_everywhere":
            return f"{a} wins at every dim."
        case "wins_nowhere":
            return f"{b} wins at every dim."
        case "cannot_settle":
            return _unsettled(comparison)
        case _:
            assert_never(crossover.verdict)


def _unsettled(comparison: Comparison) -> str:
    """What can be said without a verdict."""
    sentence = "this data cannot settle where either of them starts to win"
    settled = [d for d in comparison.differences if d.p_holm < statistics.LEVEL]
    ahead = {
        comparison.a.label: [d.dim for d in settled if d.mean > 0],
        comparison.b.label: [d.dim for d in settled if d.mean < 0],
    }
    leads = [f"{name} is ahead at {', '.join(map(str, dims))}" for name, dims in ahead.items() if dims]
    if leads:
        return f"{sentence}; {', '.join(leads)} (p < 0.05 after Holm)."
    untested = all(math.isnan(d.p_holm) for d in comparison.differences)
    return f"{sentence}." if untested else f"{sentence}; neither is ahead at any dim."


def _dims(crossover: Crossover) -> str:
    if crossover.dim is None:
        return "some dim"
    unknown = crossover.low is None or crossover.high is None
    return f"{crossover.dim:.0f} dims" + ("" if unknown else f" [{crossover.low:.0f}, {crossover.high:.0f}]")


@dataclass(frozen=True)
class Oracle:
    """An oracle that reads each test example at the smallest dim whose classifier is right about it."""

    shares: dict[int, float]  # dim → share of (seed, example) pairs for which it is the smallest right one
    never: float  # share that no dim is right about
    full: float  # accuracy at the largest dim
    mean_dims: float  # used by the oracle; an example that no dim is right about is read at the smallest

    @property
    def accuracy(self) -> float:
        return 1 - self.never


def oracle(study: Study, series: Series) -> Oracle | None:
    """None where the arm has no outcomes at two dims."""
    outcomes = nesting(study, series, "linear_top1")
    if len(outcomes) < 2:
        return None
    dims = np.array(list(outcomes))
    right = np.stack(list(outcomes.values())) > 0.5  # [dims, S, n]
    solved = right.any(0)
    first = np.where(solved, right.argmax(0), -1)
    shares = {int(dim): float((first == i).mean()) for i, dim in enumerate(dims)}
    spent = np.where(solved, dims[right.argmax(0)], dims[0])
    return Oracle(shares, float((~solved).mean()), float(right[-1].mean()), float(spent.mean()))


class Adaptive(NamedTuple):
    """A nested arm's cascade on the test split, mean over seeds."""

    rule: str  # greedy or certified
    accuracy: float
    lost: Interval  # accuracy at full width minus that of the cascade, over seeds and test examples
    full: int  # the full width
    dims: Interval  # of the granularity that answered
    cumulative_dims: float  # of all granularities that were asked
    kflop: float  # of the heads, per input
    captured: float  # share of the dims that the oracle saves which the cascade saves too
    certified: int | None  # seeds with a certificate; None for a rule that gives none
    shares: dict[int, float]  # dim → share of inputs that leave there


def adaptive(study: Study, series: Series) -> list[Adaptive]:
    """One entry per rule; empty where the runs were made without evaluation.cascade."""
    cascades = []
    for rule in RULES:
        name = f"cascade_{rule}"
        answers, spent = study.outcomes(series, f"{name}_top1"), study.outcomes(series, f"{name}_dims")
        if not answers:
            continue
        full = max(answers)

        def mean(metric: str, at: int = full) -> float:
            return float(study.values(series, metric)[at].mean())

        certified = study.values(series, "cascade_certified")[full].sum()
        lost = study.outcomes(series, "linear_top1")[full] - answers[full]
        cascades.append(
            Adaptive(
                rule,
                mean(f"{name}_top1"),
                statistics.mean_interval(lost),
                full,
                statistics.mean_interval(spent[full]),
                mean(f"{name}_cumulative_dims"),
                mean(f"{name}_kflop"),
                mean(f"{name}_captured"),
                int(certified) if rule == "certified" else None,
                {dim: float(v.mean()) for dim, v in study.values(series, f"{name}_share").items()},
            )
        )
    return cascades


class ClassNeeds(NamedTuple):
    """How a class fares at each dim, mean over seeds and its test examples."""

    name: str
    examples: int
    accuracy: dict[int, float]
    enough: int  # the smallest dim from which on accuracy stays within a point of that at the largest dim

    @property
    def gain(self) -> float:
        values = list(self.accuracy.values())
        return values[-1] - values[0]


def class_needs(study: Study, series: Series, within: float = 0.01) -> list[ClassNeeds]:
    """Every class of the test split, those first that need most dims and, among these, gain most from them."""
    outcomes = nesting(study, series, "linear_top1")
    if len(outcomes) < 2:
        return []
    needs = []
    for index, examples in enumerate(np.bincount(study.labels, minlength=len(study.classes))):
        if not examples:
            continue
        mine = study.labels == index
        accuracy = {dim: float(values[:, mine].mean()) for dim, values in outcomes.items()}
        last = list(accuracy.values())[-1]
        short = [dim for dim, value in accuracy.items() if value < last - within - 1e-9]
        enough = next(dim for dim in accuracy if not short or dim > short[-1])
        needs.append(ClassNeeds(study.classes[index], int(examples), accuracy, enough))
    return sorted(needs, key=lambda c: (-c.enough, -c.gain, c.name))


def costs(study: Study, variant: str | None) -> dict[str, float]:
    """arm → training time of all its models together, in trainings of the full-width fixed-size model.

    A model's speed is the median over its lines of metrics.jsonl, and that of its fastest seed: compilation, for every
    length of texts, falls to whatever is trained first. Empty where there is no FF of full width, or where members were
    trained together: they share one speed, which says nothing of each.
    """
    speeds: dict[tuple[str, int, int], list[tuple[int, float]]] = defaultdict(list)  # arm, width, seed
    for line in study.log:
        if line["variant"] == variant and line["split"] == "train" and line.get("examples_per_second", 0) > 0:
            place = (line["arm"], int(line.get("width") or 0), int(line["seed"]))
            speeds[place].append((line["step"], line["examples_per_second"]))
    together = len(speeds) > len({tuple(measured) for measured in speeds.values()})
    full = max(((width, arm) for arm, width, _ in speeds if arm in names_of("fixed")), default=None)
    if together or full is None:
        return {}
    seconds = defaultdict(list)  # arm, width → time per example, seed by seed
    for (arm, width, _), measured in speeds.items():
        seconds[arm, width].append(1 / float(np.median([speed for _, speed in measured])))
    unit = min(seconds[full[1], full[0]])
    total: dict[str, float] = defaultdict(float)
    for (arm, _), times in seconds.items():
        total[arm] += min(times) / unit
    return dict(total)


def equal_bytes(study: Study, series: Series) -> Iterator[tuple[float, dict[str, tuple[int, float]]]]:
    """(bytes per embedding, precision → (dims, mean knn_top1)) for the budgets that at least two precisions meet,
    ascending."""
    budgets: dict[float, dict[str, tuple[int, float]]] = defaultdict(dict)
    for name, (prefix, size) in PRECISIONS.items():
        for dim, values in study.values(series, f"{prefix}knn_top1").items():
            if dim in study.dims:
                budgets[dim * size][name] = (dim, float(values.mean()))
    yield from ((size, budgets[size]) for size in sorted(budgets) if len(budgets[size]) > 1)
