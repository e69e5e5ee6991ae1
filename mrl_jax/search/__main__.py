"""The command line of search: its options, and how it ends."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import mrl_jax.search
from mrl_jax.search import adapt, mining
from mrl_jax.search.commands import COMMANDS
from mrl_jax.search.index import BACKENDS
from mrl_jax.search.index.milvus_client import TOKEN
from mrl_jax.search.service import options
from mrl_jax.system import console
from mrl_jax.system.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    return console.run(
        _parser(),
        _act,
        arguments,
        interrupted="interrupted; the same command continues a build, or begins anew",
        place="index",
    )


def _act(given: argparse.Namespace) -> None:
    try:
        COMMANDS[given.command](given)
    except ValueError as error:  # of the library: embeddings or queries that are not finite, ids that are not UTF-8
        raise UserError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mrl_jax.search",
        description=mrl_jax.search.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add_token(command: argparse.ArgumentParser) -> None:
        command.add_argument("--token", default="", help=f"of a Milvus server; better in the environment, as {TOKEN}")

    def add_target(command: argparse.ArgumentParser) -> None:
        command.add_argument("--k", type=console.positive, default=10)
        command.add_argument(
            "--recall", type=console.share, default=0.99, help="recall@k (or nDCG@k, with --metric) to keep"
        )
        command.add_argument("--metric", choices=("recall", "ndcg"), default="recall", help="against exact search")
        command.add_argument(
            "--delta", type=console.share, default=0.05, help="probability with which the target may be missed"
        )
        command.add_argument(
            "--together", type=console.positive, default=1, help="queries that come at a time, for --kind"
        )

    kinds = ", ".join(dict.fromkeys(kind for backend in BACKENDS.values() for kind in backend.kinds))

    build = commands.add_parser("build", help="embed a corpus and add it to an index, new or begun")
    console.add_model(build, untuned=True)
    build.add_argument(
        "corpus",
        type=Path,
        help="JSONL with _id, text and perhaps title; or pictures: a folder, or a table with a column image",
    )
    build.add_argument(
        "--index", required=True, help="a folder, a Milvus Lite file ….db, or http://host:19530/database"
    )
    build.add_argument(
        "--kind", help=f"{kinds}; by default exact or, in Milvus, milvus-autoindex. auto: the fastest for --queries"
    )
    build.add_argument("--prefix", type=int, help="dims that are searched first; by default about a quarter of all")
    build.add_argument(
        "--coarse", type=int, help="of faiss-ivf: dims that its cells are formed on; by default those of the prefix"
    )
    build.add_argument("--batch", type=console.positive, default=256, help="texts or pictures embedded at a time")
    build.add_argument(
        "--replace",
        action="store_true",
        help="replace documents that are there with another text; embed pictures again",
    )
    build.add_argument("--queries", type=Path, help="of --kind auto: JSONL with text, held out, a few hundred or more")
    add_target(build)
    add_token(build)

    query = commands.add_parser("query", help="the best documents for a text or a picture")
    query.add_argument("index")
    add_token(query)
    query.add_argument("text", nargs="*", help="words; or the file of a picture, for a model that reads them")
    query.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="a picture; may be given several times"
    )
    query.add_argument("--k", type=console.positive, default=10)
    query.add_argument("--plan", default="auto", help="auto (what `plan` saved, else exact), exact, or 64:200,128:50")
    query.add_argument("--dim", type=console.positive, help="rank by so many dims of the embeddings; by default by all")
    query.add_argument("--run", help="where the model's run is now, if it was moved")

    plan = commands.add_parser("plan", help="find the cheapest shortlist that keeps a recall; saved for --plan auto")
    plan.add_argument("index")
    plan.add_argument("--queries", type=Path, required=True, help="JSONL with text: held out, a few hundred or more")
    plan.add_argument("--kind", help="auto, or a list such as exact,faiss-hnsw: choose the fastest kind as well")
    add_target(plan)
    plan.add_argument("--budget", type=float, help="maximum number of megabytes that a query may read")
    plan.add_argument("--run", help="where the model's run is now, if it was moved")

    bench = commands.add_parser("bench", help="recall and speed per method")
    bench.add_argument("index")
    add_token(bench)
    bench.add_argument("--queries", type=Path, required=True, help="JSONL with text, or image")
    bench.add_argument("--k", type=console.positive, default=10)
    bench.add_argument("--run", help="where the model's run is now, if it was moved")

    delete = commands.add_parser("delete", help="remove documents by id")
    delete.add_argument("index")
    add_token(delete)
    delete.add_argument("ids", nargs="+")

    mine = commands.add_parser(
        "mine",
        help="add hard negatives to pairs: documents that a model ranks high",
        description=mining.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mine.add_argument("run", metavar="MODEL", help="a trained run, minilm, mpnet, wordllama or a model folder")
    mine.add_argument("pairs", metavar="PAIRS", help="pairs of anchor and positive, as data=pairs reads them")
    mine.add_argument("--out", required=True, help="JSONL of the same pairs with a list negatives, for data.train")
    mine.add_argument("--corpus", help="JSONL with _id, text and perhaps title: further documents")
    mine.add_argument("--negatives", type=console.positive, default=5, help="number per pair; 5 by default")
    mine.add_argument(
        "--range", type=mining.ranks, metavar="START:STOP", help="ranks from 0; by default 0 to ten times --negatives"
    )
    mine.add_argument("--margin", type=float, help="by how much negatives score below the positive at least")
    mine.add_argument("--relative-margin", type=float, help="the same as a share of the positive's score, such as 0.05")
    mine.add_argument(
        "--sampling", choices=("top", "random"), default="top", help="which of those left; top by default"
    )
    mine.add_argument("--sampling-seed", type=int, default=0, help="of --sampling random")
    mine.add_argument("--arm", help="of a run: mrl, ff64, …; its first by default")
    mine.add_argument("--seed", type=int, default=0, help="of a run; 0 by default")
    mine.add_argument("--cache-dir", metavar="DIR", help="of embeddings; $MRL_JAX_CACHE, or ~/.cache/mrl_jax")

    maps = commands.add_parser(
        "adapt",
        help="map another model's vectors so that their prefixes are shortlists",
        description=adapt.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    maps.add_argument("vectors", help=".npz with features [n, d], or .npy")
    maps.add_argument("--dims", required=True, help="lengths of the prefixes, such as 64,128")
    maps.add_argument("--out", required=True, help="a new file, .npz")
    maps.add_argument(
        "--steps", type=console.positive, default=adapt.STEPS, help=f"of learning; {adapt.STEPS} by default"
    )
    maps.add_argument("--seed", type=int, default=0, help="of the split and of batches; 0 by default")

    options.add(commands.add_parser("serve", help="answer over HTTP: search, embeddings, classes, a page"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
