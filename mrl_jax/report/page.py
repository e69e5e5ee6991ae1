"""report.html: a study as one page that opens without a network, with plots to hover and arms to switch off.

All drawing is plotly's (plotly.js is embedded once). Names of classes, arms, runs and experiments are data and may
contain anything: they are escaped in HTML and in plotly's labels, which understand some HTML too, and the page's
content security policy lets nothing but its own two scripts run and fetches nothing. Same study, same bytes.
"""

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from plotly.io import to_json
from plotly.offline import get_plotlyjs

from mrl_jax.report import compare, page_plots
from mrl_jax.report.page_plots import PANELS, Look, Plot
from mrl_jax.report.statistics import Difference
from mrl_jax.report.study import NESTED, Comparison, Series, Study

NEEDS = (
    "Accuracy of a class at a dimension minus its accuracy at the full width, in percentage points: a red row needs "
    f"more dimensions. First the classes that come within a point of it last, {page_plots.HEATMAP_CLASSES} at most."
)
CHANGE = (
    "Above zero the first arm is better, below zero the second. Bars are 95 % intervals of the paired difference; a "
    "cross on the zero line marks where the two change places, with its interval."
)
RISING = "A line a dimension, the mean over seeds: where a line still rises, longer training may help."


def html(study: Study, comparisons: Mapping[str, Mapping[str, Comparison]]) -> str:
    """The page. `comparisons` is metric → label → comparison of two arms, as `mrl_jax.report` makes them."""
    looks = page_plots.looks_of(study.series)
    grids = [_table(metric, made) for metric, made in comparisons.items()]
    sections: dict[str, Sequence[Plot | str]] = {
        "Accuracy against dimension": page_plots.accuracy(study, looks),
        "Differences": [*_noted(page_plots.differences(comparisons, looks), CHANGE), *grids],
        "Quality against bytes": page_plots.by_bytes(study, looks),
        "Validation accuracy over training": _noted(page_plots.training(study), RISING),
        "Classes that need more dimensions": _noted(page_plots.classes(study), NEEDS),
        "How many dimensions does an example need?": [*page_plots.oracle(study, looks), *_oracles(study)],
        "Adaptive classification": _cascades(study),
    }
    plots = [part for parts in sections.values() for part in parts if isinstance(part, Plot)]
    figures = ",".join(f'"{plot.id}":{to_json(plot.figure, engine="json")}' for plot in plots)
    plotly = get_plotlyjs()
    body = "\n".join(
        f"<section>\n<h2>{heading}</h2>\n{''.join(map(_element, parts))}</section>"
        for heading, parts in sections.items()
        if parts
    )
    policy = (
        f"default-src 'none'; script-src {_sha(plotly)} {_sha(SCRIPT)}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    whole = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(study.title)}</title>
<style>{STYLE}</style>
<script>{plotly}</script>
</head>
<body>
<header>
<h1>{escape(study.title)}</h1>
{_summary(study)}
</header>
{_controls(looks)}
<main>
{body}
</main>
<script type="application/json" id="figures">{{{figures}}}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""
    # A name may hold half of a surrogate pair, which no file can.
    return whole.encode(errors="replace").decode()


def _summary(study: Study) -> str:
    seeds = f"{study.seeds} seeds" if study.seeds > 1 else "one seed"
    arms = ", ".join(series.label for series in study.series)
    examples = f"{len(study.labels):,} test examples" if len(study.labels) else "test examples"
    classes = f" of {len(study.classes):,} classes" if study.classes else ""
    notes = "".join(f"<li>{escape(note)}</li>\n" for note in study.notes)
    return (
        f"<p>Experiment <b>{escape(study.name)}</b>: {escape(arms)} on the same {examples}{classes}, "
        f"{seeds}, at {', '.join(map(str, study.dims))} of {study.width} dimensions. "
        "Point at a plot to read its values; an arm switched off disappears from all plots.</p>"
        + (f'\n<ul class="notes">\n{notes}</ul>' if notes else "")
    )


def _controls(looks: Mapping[Series, Look]) -> str:
    boxes = "".join(
        f'<label><input type="checkbox" value="{escape(series.key)}" checked style="accent-color:{look.color}">'
        f"{escape(series.label)}</label>"
        for series, look in looks.items()
    )
    return f'<form class="controls" autocomplete="off" aria-label="Arms shown">{boxes}</form>'


def _noted(plots: Sequence[Plot], note: str) -> list[Plot | str]:
    return [*plots, f'<p class="note">{note}</p>\n'] if plots else []


def _element(part: Plot | str) -> str:
    if isinstance(part, str):
        return part
    only = (' class="narrow"' if part.narrow else "") + (f' data-only="{escape(part.only)}"' if part.only else "")
    note = f"<figcaption>{escape(part.note)}</figcaption>\n" if part.note else ""
    return (
        f"<figure{only}>\n<h3>{escape(part.title)}</h3>\n"
        f'<div class="plot" id="{part.id}" style="height:{part.figure.layout.height}px"></div>\n{note}</figure>\n'
    )


def _scrolling(caption: str, head: Iterable[str], rows: Iterable[tuple[str, Iterable[str]]]) -> str:
    """A table, of HTML, that scrolls sideways by itself where the screen is narrower."""
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n' for name, cells in rows
    )
    return (
        f'<p class="caption">{caption}</p>\n<div class="scroll" tabindex="0"><table>\n'
        f"<thead><tr>{columns}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table></div>\n"
    )


def _table(metric: str, made: Mapping[str, Comparison]) -> str:
    """Differences in percentage points, a row a dim and a column a comparison, with Holm's p."""
    by_dim = {label: {d.dim: d for d in comparison.differences} for label, comparison in made.items()}
    dims = sorted({dim for column in by_dim.values() for dim in column})
    rows = [(str(dim), [_cell(column.get(dim)) for column in by_dim.values()]) for dim in dims]
    if any(comparison.tax for comparison in made.values()):
        rows.append(("tax", [_cell(comparison.tax) for comparison in made.values()]))
    rows.append(("verdict", [f"<small>{escape(compare.verdict(comparison))}</small>" for comparison in made.values()]))
    caption = (
        f"{escape(PANELS.get(metric, metric))}: difference in percentage points [95 % interval] and p after Holm’s "
        "correction over the dimensions; bold where p &lt; 0.05. Tax: what the first arm loses at full width."
    )
    return _scrolling(caption, ["dim", *map(escape, made)], rows)


def _cell(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    text = f"{100 * difference.mean:+.2f} {page_plots.bounds(difference)}".rstrip().replace("-", "−")
    p = difference.p_holm
    if math.isnan(p):
        return text
    text = f"<b>{text}</b>" if p < 0.05 else text
    return f"{text}<br><small>p {'&lt; 0.001' if p < 0.001 else f'= {p:.3f}'}</small>"


def _oracles(study: Study) -> list[str]:
    found = {s: compare.oracle(study, s) for s in study.series if s.arm in NESTED}
    rows = [
        (escape(s.label), [f"{100 * v:.2f}" for v in (o.full, o.accuracy)] + [f"{100 * (o.accuracy - o.full):+.2f}"])
        for s, o in found.items()
        if o
    ]
    return [_scrolling("Test accuracy (%).", ["arm", "full width", "oracle", "gain"], rows)] if rows else []


def _cascades(study: Study) -> list[str]:
    rows = [
        (
            escape(f"{series.label}, {found.rule}"),
            [
                f"{100 * found.accuracy:.2f}", f"{100 * found.lost.mean:+.2f}", f"{found.dims.mean:.1f}",
                f"{found.cumulative_dims:.1f}", f"{100 * found.captured:.0f}",
                "–" if found.certified is None else f"{found.certified} of {study.seeds}",
            ],
        )
        for series in study.series
        for found in compare.adaptive(study, series)
    ]  # fmt: skip
    caption = (
        "Test accuracy (%) of cascades over a model’s own classifiers, points lost against full width, dims of the "
        "answer and of all classifiers asked, dims saved as a share (%) of an oracle’s, seeds with a certificate."
    )
    head = ["cascade", "top-1", "lost", "mean dims", "cumulative", "of oracle", "certified"]
    return [_scrolling(caption, head, rows)] if rows else []


def _sha(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


STYLE = """
*{box-sizing:border-box}
body{margin:0 auto;padding:0 1rem 3rem;max-width:46.5rem;font:1rem/1.55 system-ui,sans-serif;color:#222;background:#fff;
  overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2;margin:2rem 0 .5rem}
h2{font-size:1.25rem;margin:3rem 0 0;padding-top:.75rem;border-top:1px solid #ddd}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
.notes,.note,figcaption,.caption,td small{color:#555}
.notes{padding-left:1.2rem}
figure{margin:0;min-width:0;break-inside:avoid}
.note,figcaption,.caption{font-size:.875rem;margin:.4rem 0}
.caption{margin-top:1.2rem}
.narrow{display:inline-block;width:min(100%,21rem);margin-right:1rem;vertical-align:top}
.narrow[hidden]{display:none}
.plot{width:100%}
.controls{position:sticky;top:0;z-index:10;display:flex;flex-wrap:wrap;gap:.2rem 1rem;padding:.5rem 0;background:#fff;
  border-bottom:1px solid #ddd;font-size:.9rem}
.controls label{white-space:nowrap;cursor:pointer}
.controls input{margin:0 .35rem 0 0;vertical-align:-.1em}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .7rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid #e6e6e6;white-space:nowrap;
  overflow-wrap:break-word}
td>small:only-child{display:block;white-space:normal;min-width:9rem}
@media (max-width:40rem){.controls{flex-wrap:nowrap;overflow-x:auto}}
@media print{
  @page{margin:1cm}
  .controls{display:none}
  body{padding:0}
  .scroll{overflow:visible}
  th,td{white-space:normal}
  th,td{padding-right:.4rem}
  td>small:only-child{min-width:0}
  table{font-size:.7rem}
  tr{break-inside:avoid}
  .note{break-before:avoid}
  h2,h3,.caption{break-after:avoid}
}
"""

SCRIPT = """
const figures = JSON.parse(document.getElementById("figures").textContent);
const boxes = [...document.querySelectorAll(".controls input")];

// A trace lists in `meta` the arms it is about; it is shown while all of them are switched on.
function show() {
  const off = new Set(boxes.filter(box => !box.checked).map(box => box.value));
  for (const figure of document.querySelectorAll("[data-only]")) figure.hidden = off.has(figure.dataset.only);
  for (const id of Object.keys(figures)) {
    const plot = document.getElementById(id);
    Plotly.restyle(plot, {visible: plot.data.map(trace => trace.meta.some(key => off.has(key)) ? "legendonly" : true)});
  }
}

for (const [id, {data, layout}] of Object.entries(figures)) {
  const plot = document.getElementById(id);
  Plotly.newPlot(plot, data, layout, {responsive: true, displayModeBar: false, typesetMath: false});
  plot.on("plotly_legendclick", ({curveNumber}) => {
    const keys = plot.data[curveNumber].meta;
    const box = boxes.find(box => box.value === keys[0]);
    if (keys.length !== 1 || plot.closest("[data-only]")) return true;  // plotly's own: this line, in this plot
    box.checked = !box.checked;
    show();
    return false;
  });
}
for (const box of boxes) box.addEventListener("change", show);
"""
