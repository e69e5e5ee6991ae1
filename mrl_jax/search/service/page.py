"""The pages of the service: search at two dims side by side, and a reference. They fetch nothing from elsewhere.

What they show of the corpus comes as JSON and is written as text, never as markup; the content security policy lets
nothing but the page's own script run, and that talk to this service only.
"""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from mrl_jax.report.page import STYLE, hash_source

SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")

MORE_STYLE = """
body{max-width:64rem}
form.search{display:flex;flex-wrap:wrap;gap:.5rem;margin:1rem 0}
input[type=search],input[type=password]{flex:1 1 14rem;min-width:0;font:inherit;padding:.4rem .6rem;
  border:1px solid #999;border-radius:.25rem}
button,select{font:inherit;padding:.4rem .8rem}
.sides{display:grid;grid-template-columns:1fr 1fr;gap:0 2rem}
.sides>section{min-width:0}
.sides h2{margin-top:1rem}
input[type=range]{width:100%;margin:.3rem 0}
ol{padding-left:1.6rem;margin:.5rem 0}
ol li{margin:.5rem 0}
ol li.both{font-weight:600}
ol li p{margin:0;font-weight:400}
.id,.score{color:#555;font-size:.875rem}
.score{float:right;font-variant-numeric:tabular-nums}
#said{color:#a00}
[hidden]{display:none!important}
canvas{display:block;width:100%;height:26rem;border:1px solid #ddd;touch-action:manipulation}
.legend{list-style:none;padding:0;margin:.5rem 0;font-size:.875rem;display:grid;grid-template-columns:1fr 1fr;
  gap:0 2rem}
.legend li{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.legend i{display:inline-block;width:.7rem;height:.7rem;border-radius:50%;margin-right:.4rem}
pre{overflow-x:auto;background:#f6f6f6;padding:.6rem;font-size:.8125rem}
td.wrap{white-space:normal}
.pictures,.chosen{list-style:none;padding:0}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(6.5rem,1fr));gap:.75rem}
ol.pictures li{margin:0;padding:.3rem;border:2px solid #eee;border-radius:.25rem;overflow-wrap:anywhere;
  font-size:.8125rem}
ol.pictures li.both{border-color:#4477aa;font-weight:400}
.pictures .id,.pictures .score{font-size:.75rem}
ol.pictures img{display:block;width:100%;height:6rem;object-fit:contain;margin-bottom:.2rem;background:#fafafa}
.pictures .score{float:none;display:block}
.pictures p{display:-webkit-box;-webkit-line-clamp:3;-webkit-box-orient:vertical;overflow:hidden}
.pick{padding:.4rem .8rem;border:1px dashed #767676;border-radius:.25rem;cursor:pointer}
.pick:focus-within,.over{outline:2px solid #4477aa}
.pick input{position:absolute;width:1px;height:1px;opacity:0}
.chosen{display:flex;align-items:center;gap:.75rem;margin:.5rem 0;min-width:0;overflow-wrap:anywhere}
.chosen img,#point img{max-width:8rem;max-height:6rem}
#point img,.legend img{vertical-align:middle;margin-right:.5rem}
.legend img{width:1.6rem;height:1.6rem;object-fit:contain}
@media (max-width:40rem){.sides,.legend{grid-template-columns:1fr}canvas{height:20rem}}
"""


class Page(NamedTuple):
    """A page and its headers."""

    text: str
    headers: dict[str, str]


def _page(title: str, body: str, script: str = "", pictures: bool = False) -> Page:
    """A page; with `pictures` it may show what its script has fetched."""
    allowed = f"script-src {hash_source(script)}; connect-src 'self'; " if script else ""
    fetched = " blob:" if pictures else ""
    policy = (
        f"default-src 'none'; {allowed}style-src 'unsafe-inline'; img-src data:{fetched}; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    whole = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}{MORE_STYLE}</style>
</head>
<body>
{body}
{f"<script>{script}</script>" if script else ""}
</body>
</html>
"""
    return Page(whole, {"content-security-policy": policy, "referrer-policy": "no-referrer"})


PICK = """<label class="pick" id="pick">a picture: choose, drop or paste it
<input type="file" id="file" accept="image/jpeg,image/png,image/gif,image/bmp,image/webp,image/tiff"></label>
"""
CHOSEN = '<p class="chosen" id="chosen" hidden></p>\n'


def search_page(secured: bool, reads: Sequence[str] = ("text",), pictures: bool = False) -> Page:
    """The page at /.

    Args:
        secured: whether it first asks for the token, which it keeps as long as it is open.
        reads: what the model reads, text or image, or both: what may be searched for.
        pictures: whether the documents are pictures, which are shown.
    """
    words = "" if "text" in reads else " hidden"
    marked = "framed in blue" if pictures else "bold"
    pick, chosen = (PICK, CHOSEN) if "image" in reads else ("", "")
    sides = "".join(
        f"""<section aria-label="{name}">
<h2><label for="dim-{i}"><output id="shown-{i}"></output> dims</label></h2>
<input type="range" id="dim-{i}" min="0" max="0" value="0">
<p class="note" id="time-{i}"></p>
<ol id="hits-{i}"{' class="pictures"' if pictures else ""}></ol>
</section>
"""
        for i, name in enumerate(("A prefix", "Another prefix"))
    )
    body = f"""<header>
<h1>Search by prefix</h1>
<p id="about"></p>
</header>
<form class="search" id="token-form" {"" if secured else "hidden"}>
<input type="password" id="token" aria-label="Token" placeholder="the token of this service" autocomplete="off">
<button>Open</button>
</form>
<main id="main" hidden>
<form class="search" id="search">
<input type="search" id="text" aria-label="Search for" placeholder="search for …" autocomplete="off"{words}>
{pick}<select id="k" aria-label="Results"><option>5</option><option selected>10</option><option>20</option></select>
<button>Search</button>
</form>
<p id="said" role="alert"></p>
{chosen}<p class="note" id="overlap">The same query at two dims, side by side: what both find is {marked}.</p>
<div class="sides">
{sides}</div>
<h2>What <output id="map-dim"></output> dims already keep apart</h2>
<canvas id="map" role="img" aria-label="A sample of the documents in two principal components"></canvas>
<p class="note" id="point">Point at a document to read it.</p>
<p class="note" id="map-note"></p>
<ul class="legend" id="legend"></ul>
</main>"""
    return _page("Search by prefix", body, SCRIPT, pictures or "image" in reads)


def reference(description: dict[str, Any]) -> Page:
    """The page at /docs: what /openapi.json says."""
    parts = []
    for path, methods in description["paths"].items():
        for method, about in methods.items():
            parts.append(f"<h2>{escape(method.upper())} {escape(path)}</h2>\n<p>{escape(about['summary'])}</p>")
            content = about.get("requestBody", {}).get("content", {}).get("application/json")
            schema = content["schema"] if content else {}
            named = {one["name"]: one["schema"] for one in about.get("parameters", ())} | schema.get("properties", {})
            if named:
                rows = "".join(
                    f'<tr><th scope="row">{escape(key)}</th><td>{"needed" if key in schema.get("required", ()) else ""}'
                    f'</td><td class="wrap">{escape(_allowed(of))}</td></tr>\n'
                    for key, of in named.items()
                )
                parts.append(f'<div class="scroll" tabindex="0"><table>{rows}</table></div>')
            if content:
                parts.append(f"<pre>{escape(json.dumps(content['example'], ensure_ascii=False))}</pre>")
            parts.append(f'<p class="note">Answer: {escape(about["responses"]["200"]["description"])}</p>')
    secured = "security" in description
    token = (
        " Every request but those for pages and /health has the header Authorization: Bearer TOKEN." if secured else ""
    )
    body = (
        f"<h1>{escape(description['info']['title'])}</h1>\n<p>{escape(description['info']['description'])} Bodies are "
        "JSON, sent as application/json. A mistake is answered with a status of 400 or more, and a sentence in "
        f"error.message.{token} The same as OpenAPI: /openapi.json.</p>\n"
    )
    return _page(description["info"]["title"], body + "\n".join(parts))


def _allowed(schema: dict[str, Any]) -> str:
    """What a key may be, in words."""
    if "anyOf" in schema:
        return " or ".join(_allowed(one) for one in schema["anyOf"])
    words = [schema["type"]]
    if "enum" in schema:
        words.append("one of " + ", ".join(map(str, schema["enum"])))
    for low, high, unit in (("minimum", "maximum", ""), ("minItems", "maxItems", " entries")):
        if high in schema:
            words.append(f"{schema.get(low, 0):,}…{schema[high]:,}{unit}")
    if "maxLength" in schema:
        words.append(f"at most {schema['maxLength']:,} characters")
    if "items" in schema:
        words.append(f"each {schema['items']['type']}")
    if "default" in schema:
        words.append(f"default {json.dumps(schema['default'])}")
    said = ", ".join(words)
    return f"{schema['description']} ({said})" if "description" in schema else said
