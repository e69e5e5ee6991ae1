"""Build an index of documents from a trained run, and search it; find hard negatives for pairs, and maps for prefixes.

    python -m mrl_jax.search build results/newsgroups/latest corpus.jsonl --index corpus.index
    python -m mrl_jax.search query corpus.index "how do I unmount a drive" --k 5
    python -m mrl_jax.search build results/pictures/latest photos/ --index photos.index
    python -m mrl_jax.search query photos.index "red heart"; python -m mrl_jax.search query photos.index heart.png
    python -m mrl_jax.search plan  corpus.index --queries queries.jsonl --recall 0.99
    python -m mrl_jax.search bench corpus.index --queries queries.jsonl
    python -m mrl_jax.search delete corpus.index doc-17 doc-18
    python -m mrl_jax.search mine  minilm pairs.jsonl --negatives 5 --range 10:100 --margin 0.05 --out mined.jsonl
    python -m mrl_jax.search adapt vectors.npz --dims 64,128 --out adaptor.npz
    python -m mrl_jax.search serve corpus.index --port 8000

An index is a folder, a Milvus Lite file (….db) or a Milvus server (http://host:19530). A corpus has one line of JSON
per document, with `_id` (or `id`), `text` and, if there is one, `title`, as in BEIR; queries have `text`. For a model
of pictures, or of pictures and texts, it may be a folder of pictures or a table with a column `image` of their paths.
The same command continues an interrupted build. Exit status: 0 done, 2 a mistake, 130 interrupted.
"""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    # Imported on first use: `mrl_jax.funnel` needs neither runs nor the checkpoint library.
    from mrl_jax.search import __main__ as command_line

    return command_line.main(arguments)
