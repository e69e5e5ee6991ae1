"""Collections that lie elsewhere: those of ir_datasets, and the data sets of the Hugging Face Hub.

    ir_datasets:beir/scifact/test         a search with judgments, by its name there
    hub:mteb/scifact                      a data set by its Parquet files
    hub:mteb/sts17-crosslingual-sts/es-en            one of its configurations
    hub:mteb/scifact/default/train                   another split than the test

Each is downloaded once, and written to <cache>/collections as a folder or a file in a layout that `collections` reads.
What a data set of the Hub is, its configurations and columns say, named as those of MTEB are:

    a search          configurations `corpus` and `queries`, each with _id and text, and `qrels` or `default` with
                      query-id, corpus-id and score; the name of a language may stand before each: en-corpus
    labelled texts    the columns text and label, in the splits train and test
    pairs             columns as data=pairs reads them
"""

import contextlib
import errno
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mrl_jax.data.readers.artefacts import partial_folder
from mrl_jax.data.readers.records import ChooseColumns, Record, parquet_records
from mrl_jax.data.sources import pairs
from mrl_jax.system.console import progress, say
from mrl_jax.system.errors import UserError, nearest
from mrl_jax.system.files import cache_folder, cannot_write_error

Splits = dict[str, list[str]]  # split → its files
Tables = dict[str, Splits]  # by configuration
PARQUET = "refs/convert/parquet"  # the revision that the Hub makes of every data set, in folders configuration/split
JUDGMENTS = ("query-id", "corpus-id", "score")
LABELLED = ("text", "label")
EXAMPLES = {"ir_datasets": "ir_datasets:beir/scifact/test", "hub": "hub:mteb/scifact"}


def fetch(key: str, name: str, cache_dir: str | None) -> str:
    """The folder or file on disk that a name means: itself, unless it begins with ir_datasets: or hub:.

    Raises `UserError` where there is no such collection, it cannot be downloaded, or is none that can be evaluated.
    """
    place, _, inner = name.partition(":")
    if place not in SOURCES:
        return name
    if not inner:
        raise UserError(f"{key}={name} has no name behind the colon; expected one such as {EXAMPLES[place]}")
    cache = cache_folder(cache_dir)
    inner = inner.strip("/")
    key_of_folder = hashlib.sha256(inner.encode()).hexdigest()[:12]  # a/b-c and a-b/c are not the same
    folder = cache / "collections" / place / key_of_folder / inner.replace("/", "-")
    if not folder.is_dir():
        with partial_folder(cache) as partial:
            content = partial / folder.name
            content.mkdir()
            try:
                SOURCES[place](f"{key}={name}", inner, content)
                folder.parent.mkdir(parents=True, exist_ok=True)
                content.rename(folder)
            except OSError as error:
                if not folder.is_dir():  # else another process was first
                    raise cannot_write_error(folder, error) from error
        say(f"{name} is in {folder}")
    file = folder / f"{folder.name}.jsonl"
    return str(file if file.is_file() else folder)


def of_ir_datasets(given: str, name: str, folder: Path) -> None:
    """Write a search of ir_datasets as a folder in the layout of BEIR."""
    try:
        import ir_datasets
    except ImportError:
        raise UserError(f"{given} needs the package ir_datasets: pip install 'mrl_jax[ir]'") from None
    try:
        dataset = ir_datasets.load(name)
    except KeyError:
        known = sorted(ir_datasets.registry)
        raise UserError(f"{given}: ir_datasets has no {name}{nearest(name, known)}") from None
    for part in ("docs", "queries", "qrels"):
        if not getattr(dataset, f"has_{part}")():
            raise UserError(f"{given} has no {part}; a search needs docs, queries and qrels, as beir/scifact/test has")
    with downloading(given):
        write_search(
            folder,
            ({"_id": one.doc_id, "text": one.default_text()} for one in dataset.docs_iter()),
            ({"_id": one.query_id, "text": one.default_text()} for one in dataset.queries_iter()),
            ((one.query_id, one.doc_id, one.relevance) for one in dataset.qrels_iter()),
        )


def of_hub(given: str, name: str, folder: Path) -> None:
    """Write a data set of the Hub as a folder, in the layout of BEIR or with labelled texts, or as a file of pairs."""
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        raise UserError(f"{given} needs the package huggingface_hub: pip install huggingface_hub") from None
    parts = name.strip("/").split("/")
    if not 2 <= len(parts) <= 4 or not all(parts):
        raise UserError(f"{given} is no hub:OWNER/NAME, perhaps with /CONFIGURATION and /SPLIT behind it")
    repository, configuration, split = "/".join(parts[:2]), *[*parts[2:], None, None][:2]
    with downloading(given):
        files = HfApi().list_repo_files(repository, repo_type="dataset", revision=PARQUET)

    def rows_of(names: list[str], choose: ChooseColumns) -> Iterator[Record]:
        with downloading(given):
            place = snapshot_download(repository, repo_type="dataset", revision=PARQUET, allow_patterns=names)
        return (row for name in names for _, row in parquet_records(Path(place) / name, choose))

    def labels_or_pairs(path: Path, names: list[str]) -> list[str]:
        if set(LABELLED) <= set(names):
            return list(LABELLED)
        try:
            return pairs.choose_columns(path, names)
        except UserError:
            allowed = f"text and label; {', '.join(JUDGMENTS)} beside a corpus; {pairs.ALLOWED}"
            raise UserError(f"{given} has the columns {', '.join(names)}; allowed are {allowed}") from None

    tables = tables_of(files)
    if (search := search_of(tables, configuration)) is not None:
        corpus, queries, judged = search
        write_search(
            folder,
            rows_of(some_of(corpus, split), with_ids),
            rows_of(some_of(queries, split), with_ids),
            (tuple(row[name] for name in JUDGMENTS) for row in rows_of(of_split(given, judged, split), with_scores)),
        )
        return
    splits = one_table(given, tables, configuration)
    write_jsonl(folder / "test.jsonl", rows_of(of_split(given, splits, split), labels_or_pairs))
    with (folder / "test.jsonl").open(encoding="utf-8") as file:
        is_labelled = set(json.loads(file.readline() or "{}")) == set(LABELLED)
    if is_labelled:
        write_jsonl(folder / "train.jsonl", rows_of(of_split(given, splits, "train"), labels_or_pairs))
    else:  # collections have the names of their files
        (folder / "test.jsonl").rename(folder / f"{folder.name}.jsonl")


SOURCES: dict[str, Callable[[str, str, Path], None]] = {"ir_datasets": of_ir_datasets, "hub": of_hub}


def tables_of(files: Iterable[str]) -> Tables:
    """The tables of a data set, from its files CONFIGURATION/SPLIT/NUMBER.parquet."""
    tables: Tables = {}
    for name in sorted(files):
        if name.endswith(".parquet") and name.count("/") == 2:
            configuration, split, _ = name.split("/")
            tables.setdefault(configuration, {}).setdefault(split, []).append(name)
    return tables


def search_of(tables: Tables, configuration: str | None) -> tuple[Splits, Splits, Splits] | None:
    """The splits of documents, queries and judgments, where a data set is a search. The configuration is that of the
    judgments, or what stands before a hyphen in the names of all."""

    def first(*names: str) -> Splits | None:
        return next((tables[name] for name in names if name in tables), None)

    before = f"{configuration}-" if configuration else ""
    corpus, queries = (first(before + name, name) for name in ("corpus", "queries"))
    judged = first(before + "qrels", configuration) if configuration else first("qrels", "default")
    return (corpus, queries, judged) if corpus and queries and judged else None


def one_table(given: str, tables: Tables, configuration: str | None) -> Splits:
    """The splits of the configuration, or of the only or the default one."""
    name = configuration or (next(iter(tables)) if len(tables) == 1 else "default")
    if name not in tables:
        known = ", ".join(tables) or "none, as it has no Parquet files"
        raise UserError(f"{given} has no configuration {name}; its configurations are: {known}")
    return tables[name]


def of_split(given: str, splits: Splits, split: str | None) -> list[str]:
    """The files of a split, by default of the test."""
    name = split or "test"
    if name not in splits:
        raise UserError(f"{given} has no split {name}; its splits are {', '.join(splits)}")
    return splits[name]


def some_of(splits: Splits, split: str | None) -> list[str]:
    """The files of a split of texts or, as most data sets have no such splits, all."""
    return splits.get(split or "test") or [file for files in splits.values() for file in files]


def with_ids(path: Path, names: list[str]) -> list[str]:
    """The columns to read of a table of documents or queries."""
    id_ = next((name for name in ("_id", "id") if name in names), None)
    if id_ is None or "text" not in names:
        raise UserError(f"{path} has the columns {', '.join(names)}; needed are _id (or id) and text")
    return [id_, *(name for name in ("title", "text") if name in names)]


def with_scores(path: Path, names: list[str]) -> list[str]:
    """The columns to read of a table of judgments."""
    if not set(JUDGMENTS) <= set(names):
        raise UserError(f"{path} has the columns {', '.join(names)}; needed are {', '.join(JUDGMENTS)}")
    return list(JUDGMENTS)


def write_search(
    folder: Path, documents: Iterable[Record], queries: Iterable[Record], judgments: Iterable[tuple[Any, ...]]
) -> None:
    """Write the files of a folder in the layout of BEIR."""
    for name, texts in (("corpus", documents), ("queries", queries)):
        write_jsonl(folder / f"{name}.jsonl", ({"_id": row.pop("_id", row.get("id")), **row} for row in texts))
    (folder / "qrels").mkdir()
    with (folder / "qrels" / "test.tsv").open("w", encoding="utf-8") as file:
        file.write("\t".join(JUDGMENTS) + "\n")
        file.writelines("\t".join(map(str, judged)) + "\n" for judged in judgments)


def write_jsonl(path: Path, rows: Iterable[Record]) -> None:
    """Write a row per line."""
    with path.open("w", encoding="utf-8") as file, progress(None, path.name, "row") as bar:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=float) + "\n")
            bar.update()


@contextlib.contextmanager
def downloading(given: str) -> Iterator[None]:
    """Raise a `UserError` for whatever goes wrong at the other end: clients raise errors of several libraries."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # at this end
            raise
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise UserError(f"{given} cannot be downloaded ({reason})") from error
