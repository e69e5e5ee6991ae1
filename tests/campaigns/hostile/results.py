"""Readers of what a report and a search are made of."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from made_runs import make_run

from mrl_jax.report import compare, formats, page, plots
from mrl_jax.report.gather import gather
from mrl_jax.report.sections import sections
from mrl_jax.search.dispatch import saved_plan, search_index
from mrl_jax.search.index import Description, Document, create_index, open_index, rerank

from .samples import WORDS, Reader


def report(draw: bool) -> Reader:
    """What a report is made of; drawing takes most of the time."""

    def make(folder: Path) -> list[str]:
        directory = make_run(folder, examples=8, arms=("mrl", "ff"), seeds=1, nesting_dims=(4, 16))
        return [str(path.relative_to(folder)) for path in sorted(directory.rglob("*")) if path.is_file()]

    def read(folder: Path) -> object:
        gathered = gather([folder])
        comparisons = compare.compare(gathered)
        parts = sections(gathered, comparisons)
        drawn = [plots.draw(figure) for part in parts for figure in part.figures] if draw else []
        texts = [formats.markdown(gathered, parts), formats.latex(gathered, parts), formats.tidy(comparisons)]
        return drawn, [text.encode() for text in [*texts, page.html(gathered, parts)]]

    return Reader(make, read)


def made_plan(steps: Any) -> str:
    """A plan.json of these steps, with the sum that `search plan` writes."""
    kept = {"version": 2, "k": 10, "recall": 0.9, "steps": steps}
    return json.dumps(kept | {"crc": zlib.crc32(json.dumps(kept).encode())})


def index(kind: str) -> Reader:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(12, 8)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)

    def make(folder: Path) -> list[str]:
        place = folder / "index"
        made = create_index(str(place), Description(8, (4, 8), 4, "model", "run#mrl#0", kind))
        made.add([Document(f"d{i}", WORDS[i % 8]) for i in range(12)], z)
        made.delete(["d3"])
        rerank(made, z[:1], 3, 6)
        made.close()
        (place / "plan.json").write_text(made_plan([[4, 10]]))
        return [f"index/{path.name}" for path in sorted(place.iterdir()) if path.stat().st_size]

    def read(folder: Path) -> object:
        opened = open_index(str(folder / "index"))
        try:
            hits = search_index(opened, z[:2], 3, saved_plan(opened, 3))
            assert np.isfinite(hits.scores[hits.rows >= 0]).all()
            return [opened.documents(row[row >= 0]) for row in hits.rows], len(opened), opened.find(["d1", "d3"])
        finally:
            opened.close()

    return Reader(make, read)
