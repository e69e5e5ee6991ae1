"""Build an index of documents from a trained run, and search it.

    python -m mrl_jax.search build results/newsgroups/latest corpus.jsonl --index corpus.index
    python -m mrl_jax.search query corpus.index "how do I unmount a drive" --k 5
    python -m mrl_jax.search plan  corpus.index --queries queries.jsonl --recall 0.99
    python -m mrl_jax.search bench corpus.index --queries queries.jsonl
    python -m mrl_jax.search delete corpus.index doc-17 doc-18

An index is a folder, a Milvus Lite file (….db) or a Milvus server (http://host:19530). A corpus has a line of JSON for
each document, with `_id` (or `id`), `text` and, if there is one, `title`, as in BEIR; queries have `text`. A build that
was interrupted is continued by the same command. Exit status: 0 done, 2 a mistake, 130 interrupted.
"""

import argparse
import contextlib
import json
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import mrl_jax
from mrl_jax import console, files, runs
from mrl_jax.data.readers.records import need_unicode
from mrl_jax.errors import UserError, one_of
from mrl_jax.model import EmbeddingModel
from mrl_jax.search import funnel, plan
from mrl_jax.search.funnel import Hits
from mrl_jax.search.index import Description, Document, Index, exact, faiss, rerank
from mrl_jax.search.index import store as folders
from mrl_jax.search.index.exact import ExactIndex

BATCH = 1024  # documents that are embedded, added and acknowledged together
WIDER = 10  # documents that are ranked by whole embedding for each one that is wanted, without a plan
REPEATS = 20  # single queries that are timed


# ---- an index by its place -------------------------------------------------------------------------------------------


def is_milvus(place: str) -> bool:
    return place.startswith(("http://", "https://")) or place.endswith(".db")


def open_index(place: str, write: bool = False) -> Index:
    """The index at `place`, whatever its back end. Raises UserError where there is none or it cannot be used."""
    if is_milvus(place):
        from mrl_jax.search.index import milvus  # its client takes a second to import

        return milvus.open_(place)
    connection, lock = folders.connect(Path(place), False)
    store = folders.Store(Path(place), connection, False, lock)
    kind = store.description.kind
    store.close()
    return exact.open_(Path(place), write) if kind == "exact" else faiss.open_(Path(place), write)


def create_index(place: str, description: Description) -> Index:
    """An empty index at `place`, of `description.kind`."""
    if is_milvus(place):
        from mrl_jax.search.index import milvus

        one_of("--kind", description.kind, [f"milvus-{kind}" for kind in milvus.kinds(place)])
        return milvus.create(place, description, description.kind.removeprefix("milvus-"))
    one_of("--kind", description.kind, ["exact", *faiss.KINDS])
    if description.kind == "exact":
        return exact.create(Path(place), description)
    return faiss.create(Path(place), description)


def exists(place: str) -> bool:
    """Whether there is something at `place` already: then a build continues it."""
    if is_milvus(place):
        with contextlib.suppress(UserError):
            open_index(place).close()
            return True
        return False
    path = Path(place)
    return path.exists() and (path.is_file() or not folders.is_free(path))


# ---- the model that an index belongs to ------------------------------------------------------------------------------


def described(
    model: EmbeddingModel, run: str, arm: str | None, seed: int, prefix: int | None, kind: str
) -> Description:
    width = model.program.width
    dims = tuple(sorted({*model.dims, width}))
    if prefix is None:
        prefix = min((m for m in dims if m < width), key=lambda m: abs(m - width / 4), default=width)
    if prefix not in dims:
        raise UserError(f"--prefix={prefix} is not allowed; one of {', '.join(map(str, dims))}")
    place = f"{runs.find(run)}#{arm or ''}#{seed}"
    return Description(width, dims, prefix, model.fingerprint, place, kind)


def model_of(index: Index, run: str | None) -> EmbeddingModel:
    """The model that made the index, from the run that it names or from `run`."""
    try:
        path, arm, seed = index.description.run.rsplit("#", 2)
        int(seed)
    except ValueError:
        raise UserError(f"the index names no run and member, but {index.description.run!r}; build it anew") from None
    model = mrl_jax.load(run or path, arm or None, int(seed))
    if model.fingerprint != index.description.model:
        raise UserError(
            f"the index was built by another model than that of {run or path} ({arm or 'first arm'}, seed {seed}); "
            "give its run with --run, or build the index anew"
        )
    return model


# ---- corpora and queries ---------------------------------------------------------------------------------------------


def read_lines(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(line number, its bytes, its JSON object) of a JSONL file, line by line."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    content = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{path}, line {number}: not JSON ({error})") from None
                if not isinstance(content, dict):
                    raise UserError(f"{path}, line {number}: {str(content)[:40]} is not allowed; a JSON object")
                for key, value in content.items():
                    if isinstance(value, str):
                        need_unicode(path, f"line {number}", key, value)
                yield number, len(line), content
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def document(path: Path, number: int, content: dict[str, Any]) -> Document:
    """A line of a corpus. Its title, if it has one, comes before its text."""
    id_ = content.get("_id", content.get("id"))
    text = content.get("text")
    if isinstance(id_, int) and not isinstance(id_, bool):
        id_ = str(id_)
    for key, value in (("_id", id_), ("text", text)):
        if not isinstance(value, str) or (key == "_id" and not value):
            raise UserError(f"{path}, line {number}: {key} is missing or no text; every line has _id and text")
    title = content.get("title") or ""
    if not isinstance(title, str):
        raise UserError(f"{path}, line {number}: title is no text")
    return Document(str(id_), f"{title} {text}".strip())


def queries_of(path: Path) -> list[str]:
    texts = []
    for number, _, content in read_lines(path):
        if not isinstance(content.get("text"), str):
            raise UserError(f"{path}, line {number}: text is missing; every query has one")
        texts.append(content["text"])
    if not texts:
        raise UserError(f"{path} has no queries")
    return texts


# ---- commands --------------------------------------------------------------------------------------------------------


def build(options: argparse.Namespace) -> None:
    model = mrl_jax.load(options.run, options.arm, options.seed)
    kind = options.kind or ("milvus-autoindex" if is_milvus(options.index) else "exact")
    wanted = described(model, options.run, options.arm, options.seed, options.prefix, kind)
    size = _size(options.corpus)
    index = open_index(options.index, write=True) if exists(options.index) else create_index(options.index, wanted)
    with contextlib.closing(index):
        _same(index.description, wanted, options)
        added = known = 0
        batch: list[Document] = []
        with console.progress(size, "build", "B") as bar:
            bar.unit_scale = True
            for number, length, content in read_lines(options.corpus):
                batch.append(document(options.corpus, number, content))
                bar.update(length)
                if len(batch) == BATCH:
                    new = _add(index, model, batch, options)
                    added, known, batch = added + new, known + BATCH - new, []
            new = _add(index, model, batch, options)
            added, known = added + new, known + len(batch) - new
        print(f"{options.index}: {len(index):,} documents, {added:,} added now, {known:,} were there")


def _size(path: Path) -> int:
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty")
    return path.stat().st_size


def _same(there: Description, wanted: Description, options: argparse.Namespace) -> None:
    """A build goes on only with what the index was begun with."""
    if there.model != wanted.model or there.width != wanted.width:
        raise UserError(f"{options.index} was built by another model ({there.run}); give another --index")
    for key, old, new in (("--prefix", there.prefix, options.prefix), ("--kind", there.kind, options.kind)):
        if new is not None and old != new:
            raise UserError(f"{options.index} was built with {key} {old}; leave {key} out, or give another --index")


def _add(index: Index, model: EmbeddingModel, batch: Sequence[Document], options: argparse.Namespace) -> int:
    """Embed and add what is not there; returns how many."""
    found = index.find([one.id for one in batch])
    fresh: dict[str, Document] = {}
    for one in batch:
        other = found.get(one.id) or fresh.get(one.id)
        if other is not None and other.text != one.text and not options.replace:
            raise UserError(
                f"{options.corpus}: id {one.id} is in the index with another text; ids are unique (or --replace it)"
            )
        if other is None or other.text != one.text:
            fresh[one.id] = one
    documents = list(fresh.values())
    if documents:
        index.add(documents, model.encode([one.text for one in documents], batch_size=options.batch))
    return len(documents)


def query(options: argparse.Namespace) -> None:
    with contextlib.closing(open_index(options.index)) as index:
        size = len(index)
        if not size:
            raise UserError(f"{options.index} has no documents")
        if options.k > size:
            print(f"--k={options.k}: there are only {size:,} documents", file=sys.stderr)
        steps = _steps(index, options)
        z = model_of(index, options.run).encode(options.text)
        for text in (text for text, row in zip(options.text, z, strict=True) if not row.any()):
            print(f"{text!r}: the model knows nothing in it, so no document is nearer than another", file=sys.stderr)
        hits = find(index, z, min(options.k, size), steps)
        for text, scores, rows in zip(options.text, hits.scores, hits.rows, strict=True):
            if len(options.text) > 1:
                print(f"\n{text}")
            rows = rows[rows >= 0]
            for rank, (one, score) in enumerate(zip(index.documents(rows), scores, strict=False), 1):
                shown = " ".join(one.text.split())
                print(f"{rank:>3}  {score:.4f}  {one.id}  {shown if len(shown) <= 80 else shown[:79] + '…'}")


def find(index: Index, z: np.ndarray, k: int, steps: list[tuple[int, int]] | None) -> Hits:
    """The k best of the index: by the steps of a funnel, or (None) of all documents."""
    if isinstance(index, ExactIndex):
        return index.search(z, k, steps and [(dim, min(size, len(index))) for dim, size in steps])
    size = WIDER * k if steps is None else steps[0][1]
    return rerank(index, z, k, min(size, len(index)))


def _steps(index: Index, options: argparse.Namespace) -> list[tuple[int, int]] | None:
    """What --plan asks for."""
    if options.plan == "auto":
        return _planned(index, options.k)
    if options.plan == "exact":
        if not isinstance(index, ExactIndex):
            raise UserError(f"--plan exact needs an index of kind exact; this one is {index.description.kind}")
        return None
    try:
        steps = [(int(dim), int(size)) for dim, _, size in (one.partition(":") for one in options.plan.split(","))]
        funnel.check_steps(steps, index.description.dims, options.k)
    except ValueError as error:
        said = "" if "invalid literal" in str(error) else f" ({error})"
        raise UserError(
            f"--plan={options.plan} is not allowed{said}; auto, exact, or steps such as 64:200 or 32:400,64:100"
        ) from None
    if not isinstance(index, ExactIndex) and (len(steps) > 1 or steps[0][0] != index.description.prefix):
        raise UserError(f"--plan={options.plan}: this index has one step, at {index.description.prefix} dims")
    if steps[0][0] > index.description.prefix:
        raise UserError(f"--plan={options.plan}: documents are scanned on {index.description.prefix} dims at most")
    return steps


def _planned(index: Index, k: int) -> list[tuple[int, int]] | None:
    """The steps that `plan` kept for this many documents, or exact search."""
    if not isinstance(index, ExactIndex):
        return None
    path = index.folder / "plan.json"
    if not path.exists():
        return None
    try:
        kept = json.loads(path.read_text())
        if kept.pop("crc") != zlib.crc32(json.dumps(kept).encode()):
            raise ValueError
        if kept["version"] != index.version or kept["k"] < k or kept["steps"] is None:
            return None
        steps = [(int(dim), int(size)) for dim, size in kept["steps"]]
        funnel.check_steps(steps, index.description.dims, k)
        if steps[0][0] > index.description.prefix:
            raise ValueError("more dims than are scanned")
        return steps
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise UserError(f"{path} is damaged; delete it, or plan again") from None


def plan_(options: argparse.Namespace) -> None:
    with contextlib.closing(open_index(options.index)) as index:
        if not isinstance(index, ExactIndex):
            raise UserError(f"plan needs an index of kind exact; this one is {index.description.kind}")
        z = model_of(index, options.run).encode(queries_of(options.queries))
        documents = index.laid_out
        dims = [m for m in documents.laid_out if m < index.description.width]
        truth = index.search(z, options.k, None).rows
        try:
            made = plan.plan(
                documents, z, options.k, options.recall, options.delta, options.budget, dims, truth, options.metric
            )
        except ValueError as error:
            raise UserError(str(error)) from None
        print(f"{'shortlist':>12}{options.metric:>9}{'p':>9}{'MFLOP':>9}{'MB':>9}")
        for one in made.tried:
            steps = ",".join(f"{dim}:{size}" for dim, size in one.steps)
            mark = " ←" if one is made.chosen else ""
            print(f"{steps:>12}{one.quality:>9.4f}{one.p:>9.4f}{one.cost.mflop:>9.2f}{one.cost.megabytes:>9.2f}{mark}")
        print(f"{'full scan':>12}{1:>9.4f}{'':>9}{made.exact.mflop:>9.2f}{made.exact.megabytes:>9.2f}")
        kept = {
            "version": index.version, "k": options.k, options.metric: options.recall, "delta": options.delta,
            "steps": made.chosen and made.chosen.steps,
        }  # fmt: skip
        crc = zlib.crc32(json.dumps(kept).encode())
        files.write(index.folder / "plan.json", json.dumps(kept | {"crc": crc}) + "\n")
        if made.chosen is None:
            print("no shortlist is shown to keep this recall; --plan auto searches exactly")


def bench(options: argparse.Namespace) -> None:
    """Recall against exact search, and speed, by method."""
    with contextlib.closing(open_index(options.index)) as index:
        k = min(options.k, len(index))
        if not k:
            raise UserError(f"{options.index} has no documents")
        z = model_of(index, options.run).encode(queries_of(options.queries))
        methods: list[tuple[str, Callable[[np.ndarray], Hits]]] = []
        sizes = [k * n for n in (2, 5, 10, 20, 50) if k * n <= len(index)]
        prefix = index.description.prefix
        if isinstance(index, ExactIndex):
            methods.append(("exact", lambda q: index.search(q, k, None)))
            methods += [(f"{prefix}:{size}", lambda q, s=size: index.search(q, k, [(prefix, s)])) for size in sizes]  # type: ignore[misc]
            truth = index.search(z, k, None)
        else:
            kind = index.description.kind
            methods += [(f"{kind} {prefix}:{size}", lambda q, s=size: rerank(index, q, k, s)) for size in sizes]  # type: ignore[misc]
            truth = _brute_force(index, z, k)
        print(f"{'method':>24}{f'recall@{k}':>12}{'queries/s':>12}{'ms, alone':>12}")
        for name, search in methods:
            recall = float(plan.recall(search(z).rows, truth.rows).mean())
            together = _seconds(lambda search=search: search(z), 3) / len(z)  # type: ignore[misc]
            alone = np.median([_seconds(lambda q=q, search=search: search(q[None]), 1) for q in z[:REPEATS]])  # type: ignore[misc]
            print(f"{name:>24}{recall:>12.4f}{1 / together:>12,.0f}{1000 * alone:>12.2f}")


def _brute_force(index: Index, z: np.ndarray, k: int) -> Hits:
    """Every document ranked by its whole embedding: the back end is asked for all of them."""
    if len(index) > 16384:
        raise UserError("bench compares with every document; over 16,384 it takes an index of kind exact")
    return rerank(index, z, k, len(index))


def _seconds(call: Callable[[], object], times: int) -> float:
    """The least of `times` measurements, after one that warms up."""
    call()
    measured = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        measured.append(time.perf_counter() - started)
    return min(measured)


def delete(options: argparse.Namespace) -> None:
    with contextlib.closing(open_index(options.index, write=True)) as index:
        count = index.delete(options.ids)
        print(f"{options.index}: {count} deleted, {len(options.ids) - count} were not there; {len(index):,} documents")


# ---- the command line ------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mrl_jax.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    one = commands.add_parser("build", help="embed a corpus and add it to an index, new or begun")
    one.add_argument("run", help="a run directory, or an experiment's folder for its latest run")
    one.add_argument("corpus", type=Path, help="JSONL with _id, text and perhaps title")
    one.add_argument("--index", required=True, help="a folder, a Milvus Lite file ….db, or http://host:19530")
    one.add_argument("--kind", help="exact (default), faiss-flat, faiss-hnsw, faiss-ivf, faiss-pq; milvus-autoindex, …")
    one.add_argument("--prefix", type=int, help="dims that are searched first; about a quarter of the width by default")
    one.add_argument("--arm", help="mrl, mrl_e, ff64, …; the run's first by default")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--batch", type=_positive, default=256, help="texts embedded at a time")
    one.add_argument("--replace", action="store_true", help="documents that are there with another text are replaced")
    one.set_defaults(do=build)

    one = commands.add_parser("query", help="the best documents for a text")
    one.add_argument("index")
    one.add_argument("text", nargs="+")
    one.add_argument("--k", type=_positive, default=10)
    one.add_argument("--plan", default="auto", help="auto (what `plan` found, else exact), exact, or 64:200,128:50")
    one.add_argument("--run", help="where the model is now, if not where it was")
    one.set_defaults(do=query)

    one = commands.add_parser(
        "plan", help="find the cheapest shortlist that keeps a recall, and keep it for --plan auto"
    )
    one.add_argument("index")
    one.add_argument("--queries", type=Path, required=True, help="JSONL with text: held out, a few hundred or more")
    one.add_argument("--k", type=_positive, default=10)
    one.add_argument("--recall", type=float, default=0.99, help="recall@k (or nDCG@k, with --metric) to be kept")
    one.add_argument("--metric", choices=("recall", "ndcg"), default="recall", help="against exact search")
    one.add_argument("--delta", type=float, default=0.05, help="probability with which it may be missed")
    one.add_argument("--budget", type=float, help="most megabytes that a query may read")
    one.add_argument("--run")
    one.set_defaults(do=plan_)

    one = commands.add_parser("bench", help="recall and speed by method")
    one.add_argument("index")
    one.add_argument("--queries", type=Path, required=True)
    one.add_argument("--k", type=_positive, default=10)
    one.add_argument("--run")
    one.set_defaults(do=bench)

    one = commands.add_parser("delete", help="remove documents by id")
    one.add_argument("index")
    one.add_argument("ids", nargs="+")
    one.set_defaults(do=delete)
    return parser


def _positive(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not allowed; a whole number of at least 1")
    return int(word)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    console.replace_unencodable()
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stopped:  # argparse has said why
        return int(stopped.code or 0)
    try:
        options.do(options)
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; a build is continued by the same command", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {error.filename or options.index}: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
