"""Every reader of files with a small valid sample, and ways to damage it; `fuzz.py` uses them too.

A reader is given a folder and answers with something or with a `UserError`. Whatever else happens is a bug.
"""

from collections.abc import Callable

from .archives import archives, idx, pictures
from .damage import damage
from .data import beir, corpus, labelled, paired, streamed, vectors
from .models import COMMANDS, arrays, overrides, run, settings, trained, weights, words
from .results import index, made_plan, report
from .samples import Reader, rows, write_table

__all__ = [
    "COMMANDS",
    "READERS",
    "damage",
    "labelled",
    "made_plan",
    "rows",
    "trained",
    "weights",
    "words",
    "write_table",
]

READERS: dict[str, Callable[[], Reader]] = {
    **{f"files{suffix}": lambda suffix=suffix: labelled(suffix) for suffix in (".jsonl", ".csv", ".tsv", ".parquet")},
    **{f"pairs{suffix}": lambda suffix=suffix: paired(suffix) for suffix in (".jsonl", ".csv", ".parquet")},
    **{f"streamed{suffix}": lambda suffix=suffix: streamed("files", suffix) for suffix in (".jsonl", ".parquet")},
    "streamed pairs.jsonl": lambda: streamed("pairs", ".jsonl"),
    "vectors": vectors,
    "beir": beir,
    "corpus": corpus,
    "weights": weights,
    "words": words,
    "run": run,
    "checkpoint": arrays,
    "config": settings,
    "overrides": overrides,
    "report": lambda: report(draw=False),
    "plots": lambda: report(draw=True),
    "index": lambda: index("exact"),
    "faiss": lambda: index("faiss-flat"),
    "archives": archives,
    "pictures": pictures,
    "idx": idx,
}
