"""Evaluate any model on any collection, at every dim, without training.

    python -m mrl_jax.evaluate minilm --on collections/scifact collections/nfcorpus --dims 16,32,64,128,384
    python -m mrl_jax.evaluate results/mine/latest path/to/model vectors.npz --on collections/scifact
    python -m mrl_jax.evaluate minilm --on corpus.jsonl --queries queries.jsonl --unjudged

MODEL is a trained run, a folder in the format of Hugging Face or sentence-transformers (a StaticEmbedding
too), a known name (minilm, mpnet, wordllama) or an .npz file with the arrays queries, queries_ids, documents and
documents_ids (of scored pairs first and second, of labelled texts test and train). COLLECTION is a folder in the
layout of BEIR, of which only the judgments of the test are needed, or FOLDER/qrels/dev.tsv for those of another part;
a folder with labelled texts, train.jsonl and test.jsonl (or .csv, …), scored by nearest neighbours and a linear
classifier; or a file of pairs as data=pairs reads it. Those of ir_datasets and data sets of the Hugging Face Hub are
downloaded once: ir_datasets:beir/scifact/test, hub:mteb/scifact.

Each model is scored by its prefixes, cut and then scaled to unit length; by these stored in 8 bits and in 1 bit per
coordinate; by the principal directions of the documents; and by a random projection. BM25 is the line to beat.
Results go to <out>/<collection>/<model>, as those of a run, so that python -m mrl_jax.report <out>/<collection>
compares models on a collection. Of the last command, <out>/smallest_dims.csv says how many dims keep a share of the
full width's score, and <out>/unseen_collection.csv what several collections let expect of another one.

With --unjudged a COLLECTION is a file of texts (.jsonl, .csv, .tsv, .parquet, .txt) or a folder with corpus.jsonl, and
needs no judgments: each ranking is compared with that of the model's full width, by overlap@10 and rank-biased overlap,
and with --queries judged collections say what that lets expect of nDCG@10 (<out>/agreement.csv). Without --queries, up
to 500 of the documents stand for queries.

With --classifier the models are runs, and the classifiers that they were trained with answer at every dim: on a folder
with a folder of images for each class, tfds:NAME (imagenet_v2, imagenet_r, …) or, of runs on texts, a file of texts
with labels. Classes are matched by name, and those that a test set lacks are no answer.

Embeddings are kept in the cache folder: further dims of the same model and texts take seconds. Stopped, the same
command continues the embeddings, and makes the scores again. Exit status: 0 done, 2 a mistake, 130 interrupted.
"""

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from mrl_jax.model.pretrained import is_run
from mrl_jax.system import console, files
from mrl_jax.system.errors import UserError
from mrl_jax.zero_shot import classifiers, collections, elsewhere, models, retention, scores, tables, unjudged
from mrl_jax.zero_shot.collections import Collection
from mrl_jax.zero_shot.models import Candidate


def evaluate_all(options: argparse.Namespace) -> None:
    """Evaluate every model on every collection, and print what came out."""
    if options.classifier:
        evaluate_classifiers(options)
        return
    if options.workers is not None:
        raise UserError(f"--workers={options.workers} is for --classifier, which may read images")
    if options.queries and not options.unjudged:
        raise UserError(f"--queries={options.queries} is for --unjudged; judged collections have their own queries")

    def read(given: str) -> Collection:
        name = elsewhere.fetch(collections.KEY, given, options.cache_dir)
        if options.unjudged:
            return unjudged.read(name, options.queries, options.keep_identical_ids)
        return collections.read(name, options.keep_identical_ids)

    on = collections.read_all(options.on, read)
    if (options.arm or options.seed) and not any(map(is_run, options.models)):
        key = f"--arm={options.arm}" if options.arm else f"--seed={options.seed}"
        raise UserError(f"{key} chooses a model of a trained run, and {', '.join(options.models)} is none")
    candidates = [models.find(name, options.arm, options.seed, options.cache_dir) for name in options.models]
    dims = dims_of(candidates, options.dims)
    smallest: list[tuple[object, ...]] = []
    unseen: list[tuple[object, ...]] = []
    agreement: list[tuple[object, ...]] = []
    for candidate in candidates:
        evaluations: dict[str, scores.Evaluation] = {}
        for collection in on:
            done = scores.evaluate_on(candidate, collection, dims[candidate.given], options.out)
            evaluations[collection.name] = done
            console.say(f"{done.directory}: evaluation.csv, predictions")
        own = {one.name: evaluations[one.name].outcomes[candidate.arms["truncated"], one.metric] for one in on}
        smallest_dims = {name: retention.smallest_dims(outcomes) for name, outcomes in own.items()}
        means = [{dim: float(values.mean()) for dim, values in outcomes.items()} for outcomes in own.values()]
        expected = retention.expected_shares(means)
        if options.unjudged:
            for one in on:
                rows = tables.agreement_rows(candidate, one, evaluations[one.name])
                agreement += [(evaluations[one.name].directory.name, one.name, *tables.flatten(row)) for row in rows]
                print(tables.agreement(candidate, one, rows))
            print(tables.smallest(candidate, smallest_dims, "overlap@10"), end="\n\n")
        else:
            print(
                tables.scores(candidate, on, evaluations),
                tables.smallest(candidate, smallest_dims, "the full width's score"),
                tables.unseen(len(on), expected),
                sep="\n",
            )
        folders = {name: done.directory.name for name, done in evaluations.items()}
        smallest += [(folders[name], name, *one) for name, each in smallest_dims.items() for one in each]
        together = ", ".join(dict.fromkeys(folders.values()))
        unseen += [(together, one.dim, *(f"{value:.6f}" for value in one[1:])) for one in expected]
    out = Path(options.out)
    write_table(out / "smallest_dims.csv", ("model", "collection", *retention.Smallest._fields), smallest)
    if options.unjudged:
        write_table(out / "agreement.csv", ("model", "collection", *tables.AGREEMENT_COLUMNS), agreement)
    write_table(out / "unseen_collection.csv", ("model", *retention.Expected._fields), unseen)


def evaluate_classifiers(options: argparse.Namespace) -> None:
    """As `evaluate_all`, with --classifier."""
    for key in ("unjudged", "queries", "keep_identical_ids"):
        if getattr(options, key):
            raise UserError(f"--{key.replace('_', '-')} has no meaning with --classifier")
    if others := [name for name in options.models if not is_run(name)]:
        raise UserError(f"--classifier is for trained runs, and {others[0]} is none")
    own = (options.dims, options.arm, options.seed, options.out, options.cache_dir, options.workers)
    classifiers.evaluate_all(options.models, options.on, *own)


def dims_of(candidates: Sequence[Candidate], asked: Sequence[int] | None) -> dict[str, tuple[int, ...]]:
    """The dims to score each model at: those of `asked` that it has, and its full width. Raises `UserError` for a dim
    that no model has."""
    widest = max(candidates, key=lambda candidate: candidate.width)
    if asked and max(asked) > widest.width:
        raise UserError(f"--dims={max(asked)} is more than {widest.given} has: {widest.width}")
    dims = {}
    for candidate in candidates:
        width = candidate.width
        dims[candidate.given] = tuple(sorted({*(dim for dim in asked or candidate.dims if dim <= width), width}))
        if left_out := [str(dim) for dim in asked or () if dim > width]:
            console.say(f"{candidate.given} has {width} dims; --dims={','.join(left_out)} is for the wider models")
    return dims


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table of all models of this command, in place of that of the last one."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    files.write(path, buffer.getvalue())


def dims_in(word: str) -> tuple[int, ...]:
    """The type of an argument that lists dims."""
    return tuple(sorted({console.positive(part.strip()) for part in word.strip("[]").split(",")}))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mrl_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a run, a model's folder, minilm, …, or an .npz")
    parser.add_argument(
        "--on",
        nargs="+",
        required=True,
        metavar="COLLECTION",
        help="folders of searches or labelled texts; pairs; ir_datasets:…; hub:…",
    )
    parser.add_argument("--dims", type=dims_in, help="such as 16,32,64; the trained ones of a run, else 8, 16, …")
    parser.add_argument("--arm", help="of a run: mrl, mrl_e, ff64, …; its first by default")
    parser.add_argument("--seed", type=int, default=0, help="of a run; 0 by default")
    parser.add_argument(
        "--keep-identical-ids", action="store_true", help="let a query rank the document of its own id, unlike BEIR"
    )
    parser.add_argument(
        "--unjudged",
        action="store_true",
        help="compare with the full width; COLLECTION is a file of texts or a folder",
    )
    parser.add_argument("--classifier", action="store_true", help="score the classifiers of runs on labelled examples")
    parser.add_argument("--workers", type=console.positive, metavar="N", help="processes that decode images")
    parser.add_argument("--queries", metavar="FILE", help="with --unjudged; else documents stand for queries")
    parser.add_argument("--out", default="results/evaluate", metavar="DIR", help="results/evaluate by default")
    parser.add_argument("--cache-dir", metavar="DIR", help="of embeddings; $MRL_JAX_CACHE, or ~/.cache/mrl_jax")
    again = "interrupted; the same command continues the embeddings, and makes the scores again"
    return console.run(parser, evaluate_all, arguments, interrupted=again, place="out")
