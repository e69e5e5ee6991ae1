"""The commands of `python -m mrl_jax.search`: on an index, `mine`, `adapt`, `serve`. Each takes its parsed options."""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mrl_jax import nesting, runs
from mrl_jax.model import EmbeddingModel, pretrained
from mrl_jax.search import adapt, choose, corpus, mining, pictures
from mrl_jax.search import plan as plans
from mrl_jax.search.dispatch import Stages, need_exact, parse_plan, search_index
from mrl_jax.search.index import Description, Document, Index, create_index, default_kind, exists, open_index
from mrl_jax.search.index.exact import ExactIndex
from mrl_jax.search.index.store import Store
from mrl_jax.search.queries import SearchResults, leave_out
from mrl_jax.search.truth import best_of_blocks, recall
from mrl_jax.system import console
from mrl_jax.system.errors import UserError, printable
from mrl_jax.system.files import path_of

BATCH_DOCUMENTS = 1024  # documents that are embedded, added and acknowledged together
MAX_SHOWN_CHARACTERS = 80  # of a document's text
BENCH_SIZES_PER_K = (2, 5, 10, 20, 50)  # shortlist sizes that are compared, in multiples of k
BENCH_SINGLE_QUERIES = 20  # queries that are timed one by one
BENCH_BATCH_REPEATS = 3

# ---- the model of an index -------------------------------------------------------------------------------------------


def new_description(model: EmbeddingModel, options: argparse.Namespace, root: Path | None) -> Description:
    """Of the index that `build` would create, of texts or of pictures below the folder `root`."""
    width = model.program.width
    prefix = options.prefix
    if len(model.dims) < width:
        dims = tuple(sorted({*model.dims, width}))
    else:  # pretrained weights, of which no dim is trained more than others
        dims = tuple(sorted({*nesting.log_spaced(width), *({prefix} & {*model.dims})}))
    if prefix is None:
        prefix = min((m for m in dims if m < width), key=lambda m: abs(m - width / 4), default=width)
    if prefix not in dims:
        raise UserError(f"--prefix={prefix} is not allowed; one of {', '.join(map(str, dims))}")
    run = f"{_place_of(options.run)}#{options.arm or ''}#{options.seed}"
    kind, coarse = options.kind or default_kind(options.index), options.coarse
    if coarse is not None and kind != "faiss-ivf":
        raise UserError(f"--coarse={coarse} is for --kind faiss-ivf; this index is of kind {kind}")
    if coarse is not None and coarse not in (below := [m for m in dims if m <= prefix]):
        raise UserError(f"--coarse={coarse} is not allowed; one of {', '.join(map(str, below))}")
    place = None if root is None else str(root)
    return Description(width, dims, prefix, model.fingerprint, run, kind, coarse, place)


def _place_of(name: str) -> str:
    """A run or a model folder by its whole path; weights that are known, or on the hub, by their name."""
    if pretrained.is_run(name):
        return str(runs.find(name))
    is_folder = name not in pretrained.KNOWN and path_of("run", name).is_dir()
    return str(path_of("run", name).resolve()) if is_folder else name


def load_model(index: Index, run: str | None) -> EmbeddingModel:
    """The model that made the index, from `run` or, with None, from the run that the index names."""
    try:
        path, arm, seed = index.description.run.rsplit("#", 2)
        int(seed)
    except ValueError:
        raise UserError(
            f"the index should name a run, arm and seed, but names {index.description.run!r}; rebuild it"
        ) from None
    model = pretrained.find_any(run or path, arm or None, int(seed))
    if model.fingerprint != index.description.model:
        raise UserError(
            f"the index was built by another model than that of {run or path} ({arm or 'first arm'}, seed {seed}); "
            "give its run with --run, or rebuild the index"
        )
    return model


# ---- build -----------------------------------------------------------------------------------------------------------


def build(options: argparse.Namespace) -> None:
    """Embed a corpus and add what is new of it to an index."""
    kinds = choose.kinds_of(options.index, "auto") if options.kind == "auto" else []
    if kinds and options.queries is None:
        raise UserError("--kind=auto needs --queries: JSONL with text, to measure on")
    options.kind = None if kinds else options.kind
    model = pretrained.find_any(options.run, options.arm, options.seed)
    found = pictures.find(options.corpus, options.run, model)
    description = new_description(model, options, found.root if found else None)
    if kinds:  # before anything is embedded
        asked = corpus.read_queries(options.queries, pictures.reads(model))
        _check_choice(len(asked), options)
    size = len(found.captions) if found else corpus.file_size(options.corpus)
    with contextlib.closing(_open_or_create(options.index, description, options.token)) as index:
        _check_same(index.description, description, options)
        added = known = 0
        batch: list[Document] = []

        def add_batch() -> None:
            nonlocal added, known, batch
            new = add_new(index, model, batch, options.corpus, options.replace, options.batch)
            added, known, batch = added + new, known + len(batch) - new, []

        read = found.documents() if found else corpus.read_documents(options.corpus)
        with console.progress(size, "build", "picture" if found else "B") as bar:
            bar.unit_scale = not found
            for length, one in read:
                batch.append(one)
                bar.update(length)
                if len(batch) == BATCH_DOCUMENTS:
                    add_batch()
            add_batch()
        if not added + known:
            raise UserError(f"{options.corpus} has no documents")
        index.prepare()
        print(f"{options.index}: {len(index):,} documents, {added:,} added now, {known:,} were there")
        if kinds:
            _choose(index, kinds, options)


def _open_or_create(place: str, description: Description, token: str) -> Index:
    if exists(place, token):
        return open_index(place, write=True, token=token)
    return create_index(place, description, token)


def _check_same(stored: Description, wanted: Description, options: argparse.Namespace) -> None:
    """Raises UserError for an index that was begun with another model, corpus, prefix, kind or coarse dims."""
    if stored.model != wanted.model or stored.width != wanted.width:
        raise UserError(f"{options.index} was built by another model ({stored.run}); give another --index")
    if stored.pictures != wanted.pictures:
        was = "texts" if stored.pictures is None else f"the pictures below {stored.pictures}"
        raise UserError(
            f"{options.index} was built of {was}, and {options.corpus} is another corpus; give another --index"
        )
    for key in ("prefix", "kind", "coarse"):
        old, new = getattr(stored, key), getattr(options, key)
        if new is not None and old != new:
            was = f"with --{key} {old}" if old is not None else f"without --{key}"
            raise UserError(f"{options.index} was built {was}; leave --{key} out, or give another --index")


def add_new(
    index: Index, model: EmbeddingModel, batch: Sequence[Document], where: object, replace: bool, batch_size: int
) -> int:
    """Embed and add the documents that the index lacks; returns how many.

    Args:
        index: open for writing.
        model: of the index.
        batch: documents; of several with one id and the same text, one is added.
        where: they come from, for messages.
        replace: whether a document with another text replaces that of the same id; otherwise it is an error. Pictures
            are embedded again in any case: a file may have changed under its name.
        batch_size: texts or pictures that are embedded at a time.

    Raises:
        UserError: an id is there with another text, and not to be replaced; or the index cannot be written.
    """
    root = index.description.pictures
    stored = {} if root is not None and replace else index.find([one.id for one in batch])
    new: dict[str, Document] = {}
    for one in batch:
        other = new.get(one.id) or stored.get(one.id)
        if other is not None and other.text != one.text and not replace:
            raise UserError(f"{where}: id {one.id} is in the index with another text; ids are unique (or --replace it)")
        if other is None or other.text != one.text:
            new[one.id] = one
    documents = list(new.values())
    if documents:
        index.add(documents, pictures.embed_documents(model, root, documents, batch_size))
    return len(documents)


# ---- query -----------------------------------------------------------------------------------------------------------


def query(options: argparse.Namespace) -> None:
    """Print the best documents for each text or picture."""
    for place, text in enumerate(options.text, 1):
        if not text.strip():
            which = f" (text {place} of {len(options.text)})" if len(options.text) > 1 else ""
            raise UserError(f"the text to search for is empty{which}")
    if not options.text and not options.image:
        raise UserError("nothing to search for is given: a text, or --image FILE")
    with contextlib.closing(open_index(options.index, token=options.token)) as index:
        size = _size(index, options)
        if options.k > size:
            print(f"--k={options.k}: there are only {size:,} documents", file=sys.stderr)
        stages = parse_plan(index, options.plan, options.k, options.dim)
        model = load_model(index, options.run)
        asked = pictures.queries_of(model, options.text, options.image)
        z = pictures.embed_queries(model, asked)
        for text in (text for text, row in zip(asked, z, strict=True) if isinstance(text, str) and not row.any()):
            print(f"{text!r}: no token of this query is in the vocabulary; the ranking is arbitrary", file=sys.stderr)
        results = search_index(index, z, min(options.k, size), stages, options.dim)
        least = int((results.rows >= 0).sum(axis=1).min())
        if least < results.rows.shape[1]:
            kind = index.description.kind
            print(f"{options.index}: {kind} finds only {least:,} of {size:,} documents", file=sys.stderr)
        for one, scores, rows in zip(asked, results.scores, results.rows, strict=True):
            if len(asked) > 1:
                print(f"\n{printable(str(one))}")
            for rank, (found, score) in enumerate(zip(index.documents(rows[rows >= 0]), scores, strict=False), 1):
                shown = printable(" ".join(found.text.split())) if found.text != found.id else ""
                if len(shown) > MAX_SHOWN_CHARACTERS:
                    shown = shown[: MAX_SHOWN_CHARACTERS - 1] + "…"
                print(f"{rank:>3}  {score:.4f}  {printable(found.id)}  {shown}".rstrip())


def _size(index: Index, options: argparse.Namespace) -> int:
    if not len(index):
        raise UserError(f"{options.index} has no documents")
    return len(index)


def _read_queries(
    index: Index, options: argparse.Namespace, check: Callable[[int], None] = lambda count: None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The embeddings of the queries in a file and, where some of them have the id of a document, its handle for each.

    That document is the query itself and would be its first result, so it is left out (BEIR's `ignore_identical_ids`).
    `check` is called with the number of queries before any is embedded, to raise ValueError.
    """
    model = load_model(index, options.run)
    queries = corpus.read_queries(options.queries, pictures.reads(model))
    check(len(queries))
    z = pictures.embed_queries(model, [one.picture or one.text for one in queries])
    ids = [one.id or pictures.id_of(index.description.pictures, one.picture) for one in queries]
    handles = index.handles([id_ for id_ in ids if id_ is not None])
    if not handles:
        return z, None
    own = np.array([handles.get(id_ or "", -1) for id_ in ids])
    count = f"{(own >= 0).sum():,} of {len(queries):,} queries"
    print(f"{options.queries}: {count} have the id of a document, which is left out of their results", file=sys.stderr)
    return z, own


# ---- plan ------------------------------------------------------------------------------------------------------------


def plan(options: argparse.Namespace) -> None:
    """Certify the cheapest shortlist that keeps a recall, and save it; with --kind, choose the kind of index, too."""
    if options.kind is not None:
        if options.budget is not None:
            raise UserError("--budget is for a plan without --kind, which is chosen by time")
        kinds = choose.kinds_of(options.index, options.kind)
        with contextlib.closing(open_index(options.index, write=True)) as opened:
            _choose(opened, kinds, options)
        return
    with contextlib.closing(open_index(options.index)) as opened:
        index = need_exact(opened, "plan without --kind")
        k = min(options.k, _size(index, options))
        documents = index.prefixes
        dims = [m for m in documents.scan_dims if m < index.description.width]

        def check(queries: int) -> None:
            if dims:
                plans.check_settleable(queries, options.recall, options.delta, len(dims), options.metric)

        z, own = _read_queries(index, options, check)
        truth = leave_out(best_of_blocks(index.blocks(), z, plans.asked_of(k, own)), own).rows
        made = plans.plan(
            documents, z, k, options.recall, options.delta, options.budget, dims, truth, options.metric, own
        )
        print(f"{'shortlist':>12}{options.metric:>9}{'p':>9}{'MFLOP':>9}{'MB':>9}")
        for one in made.tried:
            stages = ",".join(f"{dim}:{size}" for dim, size in one.stages)
            mark = " ←" if one is made.chosen else ""
            print(f"{stages:>12}{one.quality:>9.4f}{one.p:>9.4f}{one.cost.mflop:>9.2f}{one.cost.megabytes:>9.2f}{mark}")
        print(f"{'full scan':>12}{1:>9.4f}{'':>9}{made.exact.mflop:>9.2f}{made.exact.megabytes:>9.2f}")
        chosen = made.chosen and made.chosen.stages
        plans.save(index.folder, index.version, k, options.metric, options.recall, options.delta, chosen)
        if chosen is None:
            print(f"no shortlist is certified to keep this {options.metric}; --plan auto searches exactly")


def _check_choice(queries: int, options: argparse.Namespace) -> None:
    """Raises ValueError for options of `--kind` with which nothing can be chosen."""
    choose.check_settleable(queries, options.recall, options.delta, options.metric)


def _choose(index: Index, kinds: Sequence[str], options: argparse.Namespace) -> None:
    """Choose the fastest kind of index on this machine, and print what was tried."""
    assert isinstance(index, Store)
    k = min(options.k, _size(index, options))
    z, own = _read_queries(index, options, lambda queries: _check_choice(queries, options))
    together = options.together
    print(f"{'method':>24}{options.metric:>9}{'p':>9}{f'ms for {together}':>12}{'MB':>9}{'built in s':>12}")

    def show(one: choose.Method) -> None:
        p = "pilot" if one.p is None else f"{one.p:.4f}"
        milliseconds = "not kept" if one.seconds is None else f"{1000 * one.seconds:.2f}"
        print(f"{one!s:>24}{one.quality:>9.4f}{p:>9}{milliseconds:>12}{one.megabytes:>9.1f}", end="")
        print(f"{one.build_seconds:>12.1f}", flush=True)

    chosen = choose.choose(index, kinds, z, k, options.recall, options.delta, together, own, options.metric, show)
    if chosen is None:
        raise UserError(f"none of {', '.join(kinds)} is certified to keep {options.metric} {options.recall}")
    print(f"{options.index}: {chosen}, from now on")


# ---- bench -----------------------------------------------------------------------------------------------------------


def bench(options: argparse.Namespace) -> None:
    """Print recall against exact search, and speed, per method."""
    with contextlib.closing(open_index(options.index, token=options.token)) as index:
        k = min(options.k, _size(index, options))
        z, own = _read_queries(index, options)
        methods = _methods(index, plans.asked_of(k, own))
        truth = leave_out(best_of_blocks(index.blocks(), z, plans.asked_of(k, own)), own)
        print(f"{'method':>24}{f'recall@{k}':>12}{'queries/s':>12}{'ms, alone':>12}")
        for name, search in methods.items():
            share = float(recall(leave_out(search(z), own), truth).mean())
            batch = _seconds(search, z, BENCH_BATCH_REPEATS) / len(z)
            alone = np.median([_seconds(search, one[None], 1) for one in z[:BENCH_SINGLE_QUERIES]])
            print(f"{name:>24}{share:>12.4f}{1 / batch:>12,.0f}{1000 * alone:>12.2f}")


def _methods(index: Index, k: int) -> dict[str, Callable[[np.ndarray], SearchResults]]:
    """Name → search: exact, where the back end has it, and shortlists of several sizes."""
    prefix, kind = index.description.scanned, index.description.kind

    def with_stages(stages: Stages | None) -> Callable[[np.ndarray], SearchResults]:
        return lambda z: search_index(index, z, k, stages)

    exact = isinstance(index, ExactIndex)
    methods = {"exact": with_stages(None)} if exact else {}
    most = min(len(index), index.max_candidates)
    for size in sorted({min(k * n, most) for n in BENCH_SIZES_PER_K if most >= k}):
        methods[f"{prefix}:{size}" if exact else f"{kind} {prefix}:{size}"] = with_stages([(prefix, size)])
    return methods


def _seconds(search: Callable[[np.ndarray], object], z: np.ndarray, repeats: int) -> float:
    """The least of `repeats` measurements of a search, after one that warms up."""
    search(z)
    measured = []
    for _ in range(repeats):
        started = time.perf_counter()
        search(z)
        measured.append(time.perf_counter() - started)
    return min(measured)


# ---- delete ----------------------------------------------------------------------------------------------------------


def delete(options: argparse.Namespace) -> None:
    """Remove documents by id."""
    with contextlib.closing(open_index(options.index, write=True, token=options.token)) as index:
        count = index.delete(options.ids)
        print(f"{options.index}: {count} deleted, {len(options.ids) - count} were not there; {len(index):,} documents")


# ---- serve -----------------------------------------------------------------------------------------------------------


def serve(options: argparse.Namespace) -> None:
    """Answer requests over HTTP until the process is told to stop."""
    try:
        from mrl_jax.search.service import server  # the extra is needed by nothing else
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "prometheus_client"):
            raise
        raise UserError("search serve needs more packages: pip install 'mrl_jax[serve]'") from None
    server.serve(options)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "build": build, "query": query, "plan": plan, "bench": bench, "delete": delete, "mine": mining.mine,
    "adapt": adapt.adapt, "serve": serve,
}  # fmt: skip
