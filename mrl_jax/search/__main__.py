"""The command line of search: its options, and how it ends."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import mrl_jax.search
from mrl_jax import console
from mrl_jax.errors import UserError
from mrl_jax.search.commands import COMMANDS
from mrl_jax.search.index import BACKENDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    return console.run(
        _parser(), _act, arguments, interrupted="interrupted; the same command continues a build", place="index"
    )


def _act(options: argparse.Namespace) -> None:
    try:
        COMMANDS[options.command](options)
    except ValueError as error:  # of the library: embeddings or queries that are not finite, ids that are not UTF-8
        raise UserError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mrl_jax.search",
        description=mrl_jax.search.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    kinds = ", ".join(dict.fromkeys(kind for backend in BACKENDS.values() for kind in backend.kinds))

    build = commands.add_parser("build", help="embed a corpus and add it to an index, new or begun")
    build.add_argument("run", help="a run directory, or an experiment's folder for its latest run")
    build.add_argument("corpus", type=Path, help="JSONL with _id, text and perhaps title")
    build.add_argument("--index", required=True, help="a folder, a Milvus Lite file ….db, or http://host:19530")
    build.add_argument("--kind", help=f"{kinds}; by default exact or, in Milvus, milvus-autoindex")
    build.add_argument("--prefix", type=int, help="dims that are searched first; by default about a quarter of all")
    build.add_argument("--arm", help="mrl, mrl_e, ff64, …; the run's first by default")
    build.add_argument("--seed", type=int, default=0)
    build.add_argument("--batch", type=_positive, default=256, help="texts embedded at a time")
    build.add_argument("--replace", action="store_true", help="replace documents that are there with another text")

    query = commands.add_parser("query", help="the best documents for a text")
    query.add_argument("index")
    query.add_argument("text", nargs="+")
    query.add_argument("--k", type=_positive, default=10)
    query.add_argument("--plan", default="auto", help="auto (what `plan` saved, else exact), exact, or 64:200,128:50")
    query.add_argument("--run", help="where the model's run is now, if it was moved")

    plan = commands.add_parser("plan", help="find the cheapest shortlist that keeps a recall; saved for --plan auto")
    plan.add_argument("index")
    plan.add_argument("--queries", type=Path, required=True, help="JSONL with text: held out, a few hundred or more")
    plan.add_argument("--k", type=_positive, default=10)
    plan.add_argument("--recall", type=float, default=0.99, help="recall@k (or nDCG@k, with --metric) to keep")
    plan.add_argument("--metric", choices=("recall", "ndcg"), default="recall", help="against exact search")
    plan.add_argument("--delta", type=float, default=0.05, help="probability with which the target may be missed")
    plan.add_argument("--budget", type=float, help="maximum number of megabytes that a query may read")
    plan.add_argument("--run", help="where the model's run is now, if it was moved")

    bench = commands.add_parser("bench", help="recall and speed per method")
    bench.add_argument("index")
    bench.add_argument("--queries", type=Path, required=True, help="JSONL with text")
    bench.add_argument("--k", type=_positive, default=10)
    bench.add_argument("--run", help="where the model's run is now, if it was moved")

    delete = commands.add_parser("delete", help="remove documents by id")
    delete.add_argument("index")
    delete.add_argument("ids", nargs="+")
    return parser


def _positive(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not allowed; it must be a whole number of at least 1")
    return int(word)


if __name__ == "__main__":
    sys.exit(main())
