"""report.html: a study as one page that opens without a network, with plots to hover and arms to switch off.

All drawing is plotly's (plotly.js is embedded once). Names of classes, arms, runs and experiments are data and may
contain anything: they are escaped in HTML and in plotly's labels, which understand some HTML too, and the page's
content security policy lets nothing but its own two scripts run and fetches nothing. Same study, same bytes.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from itertools import zip_longest
from typing import Any

from plotly.offline import get_plotlyjs

from mrl_jax.report import figures, page_plots
from mrl_jax.report.figures import Figure
from mrl_jax.report.study import Study
from mrl_jax.report.tables import Section, Table


def html(study: Study, parts: Sequence[Section]) -> str:
    """The page of `parts`, which `sections` made of the study."""
    plots: dict[str, Any] = {}  # id → data and layout
    body = "\n".join(_section(part, plots) for part in parts)
    # Between tags, `<` and `>` are not JSON's to use.
    data = json.dumps(plots, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")
    plotly = get_plotlyjs()
    policy = (
        f"default-src 'none'; script-src {hash_source(plotly)} {hash_source(SCRIPT)}; "
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
{_controls(study)}
<main>
{body}
</main>
<script type="application/json" id="figures">{data}</script>
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


def _controls(study: Study) -> str:
    boxes = "".join(
        f'<label><input type="checkbox" value="{escape(series.key)}" checked '
        f'style="accent-color:{figures.look_of(study, series).color}">{escape(series.label)}</label>'
        for series in study.series
    )
    return f'<form class="controls" autocomplete="off" aria-label="Arms shown">{boxes}</form>'


def _section(part: Section, plots: dict[str, Any]) -> str:
    """A part's heading, sentences, plots and tables; what its plots show is added to `plots`."""
    sentences = [f"<li>{escape(sentence)}</li>" for sentence in part.sentences]
    text = f"<ul>{''.join(sentences)}</ul>" if len(sentences) > 1 else "".join(map(_paragraph, part.sentences))
    markup = ""
    for figure, following in zip_longest(part.figures, part.figures[1:]):
        markup += _figure(figure, plots)
        if figure.panels and (following is None or following.note != figure.note):
            markup += _paragraph(figure.note, "note")
    return f"<section>\n<h2>{escape(part.heading)}</h2>\n{text}\n{markup}{''.join(map(_table, part.tables))}</section>"


def _paragraph(text: str, kind: str = "") -> str:
    return f"<p{kind and f' class={kind}'}>{escape(text)}</p>\n"


def _figure(figure: Figure, plots: dict[str, Any]) -> str:
    kind = figure.name.partition("-")[0]
    markup = []
    for panel in figure.panels:
        place = f"{kind}-{sum(name.startswith(f'{kind}-') for name in plots)}"
        height = page_plots.height(panel, figure.small)
        plots[place] = page_plots.plot(panel)
        only = (' class="narrow"' if figure.small else "") + (f' data-only="{panel.only}"' if panel.only else "")
        title = f"<h4>{escape(panel.title)}</h4>\n" if panel.title else ""
        markup.append(
            f'<figure{only}>\n{title}<div class="plot" id="{place}" style="height:{height}px"></div>\n</figure>\n'
        )
    title = f"<h3>{escape(figure.title)}</h3>\n" if figure.title and markup else ""
    return title + "".join(markup)


def _table(table: Table) -> str:
    """A table that scrolls sideways by itself where the screen is narrower."""
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row)}</tr>\n'
        for name, *row in table.rows
    )
    return (
        f'{_paragraph(table.caption, "caption")}<div class="scroll" tabindex="0"><table>\n'
        f"<thead><tr>{header}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n"
    )


def hash_source(script: str) -> str:
    """A script as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


STYLE = """
*{box-sizing:border-box}
body{margin:0 auto;padding:0 1rem 3rem;max-width:46.5rem;font:1rem/1.55 system-ui,sans-serif;color:#222;background:#fff;
  overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2;margin:2rem 0 .5rem}
h2{font-size:1.25rem;margin:3rem 0 0;padding-top:.75rem;border-top:1px solid #ddd}
h3,h4{font-size:1rem;margin:1.2rem 0 .3rem}
h4{font-weight:600}
.notes,.note,.caption{color:#555}
ul{padding-left:1.2rem}
figure{margin:0;min-width:0;break-inside:avoid}
.note,.caption{font-size:.875rem;margin:.4rem 0}
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
@media (max-width:40rem){.controls{flex-wrap:nowrap;overflow-x:auto}}
@media print{
  @page{margin:1cm}
  .controls{display:none}
  body{padding:0}
  .scroll{overflow:visible}
  th,td{white-space:normal}
  th,td{padding-right:.4rem}
  table{font-size:.7rem}
  tr{break-inside:avoid}
  .note{break-before:avoid}
  h2,h3,h4,.caption{break-after:avoid}
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
