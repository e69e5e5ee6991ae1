"""Tables and plots of a run, drawn from its evaluation.csv and metrics.jsonl and from nothing else.

python -m mrl_jax.report results/newsgroups/latest
"""

import io
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mrl_jax import config as configuration
from mrl_jax import runs
from mrl_jax.errors import UserError
from mrl_jax.runs import Row

ARMS = {"mrl": "MRL", "mrl_e": "MRL-E", "ff": "FF (fixed size)"}
COLORS = {"mrl": "#1b6ca8", "mrl_e": "#d1495b", "ff": "#5b8e3e"}
MARKERS = {"mrl": "o", "mrl_e": "s", "ff": "^"}
METRICS = ("linear_top1", "linear_top5", "ece", "knn_top1", "map@10", "precision@10")
PANELS = {"linear_top1": "classifier, top-1 accuracy", "knn_top1": "nearest neighbour, top-1 accuracy"}


def table(directory: Path, split: str = "test") -> str:
    """Every metric at every dim, arm by arm, as fixed-width text; with several seeds mean ± standard deviation."""
    rows = [row for row in runs.read_rows(directory / "evaluation.csv") if row.split == split]
    values = _by_seed(rows)
    seeds = max((len(v) for v in values.values()), default=0)
    width = 16 if seeds > 1 else 14
    lines = []
    for arm in _in_order(row.arm for row in rows):
        note = f", mean ± standard deviation of {seeds} seeds" if seeds > 1 else ""
        metrics = [m for m in METRICS if any(key[0] == arm and key[2] == m for key in values)]
        lines += ["", f"{ARMS[arm]}, {split} split{note}", "   dim" + "".join(f"{m:>{width}}" for m in metrics)]
        for dim in sorted({key[1] for key in values if key[0] == arm}):
            cells = (_cell(values.get((arm, dim, metric))) for metric in metrics)
            lines.append(f"{dim:>6}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(lines[1:])


def draw(directory: Path) -> list[Path]:
    """Draw `plots/accuracy` and `plots/training` as PNG and SVG; returns the files. Same inputs, same bytes."""
    rows = [row for row in runs.read_rows(directory / "evaluation.csv") if row.split == "test"]
    log = list(runs.Log(directory / "metrics.jsonl").read())
    if not rows:
        raise UserError(f"{directory} has nothing to draw yet: evaluation.csv is missing or empty")
    config = configuration.from_yaml(directory / "config.yaml")
    figures = {
        "accuracy": accuracy_against_dim(rows, config.nesting_dims),
        "training": training_curves([line for line in log if line["split"] == "validation"]),
    }
    # Salt and dates are fixed so that the files depend on the numbers alone.
    drawn = []
    with matplotlib.rc_context({"svg.hashsalt": "mrl_jax", "svg.fonttype": "none"}):
        for name, figure in figures.items():
            for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                content = io.BytesIO()
                figure.savefig(content, format=suffix, dpi=150, metadata=metadata)
                drawn.append(directory / "plots" / f"{name}.{suffix}")
                runs.write(drawn[-1], content.getvalue())
    return drawn


def accuracy_against_dim(rows: Sequence[Row], nesting_dims: Sequence[int]) -> Figure:
    """A panel a metric, a line an arm (mean over seeds, band from the lowest to the highest seed).

    Filled markers are nesting dims, hollow ones the dims between them, which no loss was taken at.
    """
    values = _by_seed(rows)
    panels = {m: title for m, title in PANELS.items() if any(key[2] == m for key in values)}
    figure = Figure(figsize=(5.2 * len(panels), 4.0), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, (metric, title) in zip(axes, panels.items(), strict=True):
        for arm in _in_order(row.arm for row in rows):
            dims = sorted({key[1] for key in values if key[0] == arm and key[2] == metric})
            if not dims:
                continue
            scores = [np.array(values[arm, dim, metric]) * 100 for dim in dims]
            mean = np.array([s.mean() for s in scores])
            color = COLORS[arm]
            ax.plot(dims, mean, color=color, linewidth=1.6, label=ARMS[arm])
            ax.fill_between(
                dims, [s.min() for s in scores], [s.max() for s in scores], color=color, alpha=0.15, linewidth=0
            )
            for trained in (True, False):
                at = [i for i, dim in enumerate(dims) if (dim in nesting_dims) == trained]
                ax.plot(
                    np.array(dims)[at],
                    mean[at],
                    MARKERS[arm],
                    color=color,
                    markersize=5,
                    markerfacecolor=color if trained else "white",
                )
        ax.set_title(title, fontsize=11)
        _log_axis(ax, nesting_dims)
        ax.legend(frameon=False, loc="lower right")
    axes[0].set_ylabel("test accuracy (%)")
    return figure


def training_curves(log: Sequence[dict[str, Any]]) -> Figure:
    """Validation accuracy over training, a panel an arm, a line a granularity (mean over seeds)."""
    arms = _in_order(line["arm"] for line in log)
    figure = Figure(figsize=(5.2 * max(1, len(arms)), 4.0), layout="constrained")
    axes = figure.subplots(1, max(1, len(arms)), squeeze=False, sharey=True)[0]
    dims = sorted({int(dim) for line in log for dim in line["accuracy"]})
    shades = matplotlib.colormaps["viridis"](np.linspace(0.9, 0.0, len(dims)))
    for ax, arm in zip(axes, arms, strict=False):
        for dim, shade in zip(dims, shades, strict=True):
            points = defaultdict(list)
            for line in log:
                if line["arm"] == arm and str(dim) in line["accuracy"]:
                    points[line["step"]].append(line["accuracy"][str(dim)] * 100)
            if points:
                at = sorted(points)
                ax.plot(at, [np.mean(points[step]) for step in at], color=shade, linewidth=1.6, label=str(dim))
        ax.set_title(ARMS[arm], fontsize=11)
        ax.set_xlabel("step")
        _frame(ax)
        ax.legend(frameon=False, loc="lower right", title="dim", ncols=2, fontsize=9)
    axes[0].set_ylabel("validation accuracy (%)")
    return figure


def _by_seed(rows: Iterable[Row]) -> dict[tuple[str, int, str], list[float]]:
    """(arm, dim, metric) → one value a seed."""
    values = defaultdict(list)
    for row in rows:
        values[row.arm, row.dim, row.metric].append(row.value)
    return dict(values)


def _cell(values: list[float] | None) -> str:
    if values is None:
        return "–"
    mean = f"{np.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.3f}"[:14]


def _in_order(arms: Iterable[str]) -> list[str]:
    present = set(arms)
    return [arm for arm in ARMS if arm in present]


def _log_axis(ax: Axes, ticks: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(ticks), [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel("embedding dimensions used")
    _frame(ax)


def _frame(ax: Axes) -> None:
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def forgiving_output() -> None:
    """Print `?` for a sign that the terminal's encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    forgiving_output()
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m mrl_jax.report RUN", file=sys.stderr)
        return 2
    try:
        directory = runs.find(arguments[0])
        drawn = draw(directory)
        print(table(directory))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"plots: {', '.join(str(path) for path in drawn)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
