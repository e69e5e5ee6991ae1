"""Preprocessors: how raw examples become the arrays that an encoder reads. They are saved with a run.

    TfidfWords    texts → `ids`, `weights`: the heaviest distinct words by tf-idf
    Subwords      texts → `ids`, `mask`: tokens in their order
    Passthrough   images → `image`, or features → `features`

Each text is tokenised once, before training. What a preprocessor learns depends on the set of the training texts alone,
not on their order or on the machine.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Encoding, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mrl_jax.system import files
from mrl_jax.system.errors import UserError
from mrl_jax.text import untrusted
from mrl_jax.text.ngrams import BUCKETS, of_texts

# Words of these scripts have no spaces between them. Each character of Chinese and Japanese is a unit, but a run of
# katakana (a loan word) is one; in Thai, Lao, Burmese and Khmer, whose letters say as little as those of Latin, a
# consonant with its vowels and marks is one, roughly a syllable.
_CHARACTERS = "\u3005-\u3007\u3041-\u309f\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
_VOWELS_BEFORE = "\u0e40-\u0e44\u0ec0-\u0ec4"
_CONSONANTS = "\u0e01-\u0e2e\u0e81-\u0eae\u0edc-\u0edf\u1000-\u102a\u103f\u1050-\u1055\u1780-\u17b3"
_MARKS = "\u0e30-\u0e3a\u0e45\u0e47-\u0e4e\u0eb0-\u0ebd\u0ec8-\u0ece\u102b-\u103e\u1056-\u1059\u17b6-\u17d3\u17dd"
UNSPACED = f"[{_CHARACTERS}]|[{_KATAKANA}]+|[{_VOWELS_BEFORE}]?[{_CONSONANTS}][{_MARKS}]*"
HAS_UNSPACED = re.compile(UNSPACED)

Arrays = dict[str, Any]  # name → array [n, …] (images too many for memory: a lazy object indexed by rows)


class Texts(Protocol):
    """Texts that can be counted and read in order, more than once."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...


class Preprocessor(Protocol):
    """Raw inputs of one kind → named arrays."""

    @property
    def vocabulary(self) -> int:
        """Number of token ids; 0 where there are no tokens."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Turns texts into token ids; None where the inputs are no texts."""
        ...

    def __call__(self, raw: Any) -> Arrays: ...

    def save(self, directory: Path) -> None: ...


@dataclass
class Passthrough:
    """Images and features reach the encoder as they are."""

    kind: str
    vocabulary: int = 0
    tokenizer: None = None

    def __call__(self, raw: Any) -> Arrays:
        if self.kind == "image" and isinstance(raw, list | tuple):
            raise UserError("this run reads an array uint8 [n, h, w, c]; files and pictures can be read by newer runs")
        return {self.kind: raw}

    def save(self, directory: Path) -> None:
        pass


@dataclass
class TfidfWords:
    """Distinct words weighted by sublinear tf × idf and scaled to unit length, the heaviest `max_words` of a text. In
    scripts without spaces between words they are characters or syllables.

        w = (1 + ln tf) · (1 + ln((1 + n) / (1 + df)))                      (scikit-learn's smoothed idf)

    With `units` characters, a text is the characters of its words with a space around each. Runs of up to `ngrams`
    units are words like any other (see `ngrams`), and a space counts within runs only. A text without a known word has
    no weights at all: its embedding is that of the empty text.
    """

    tokenizer: Tokenizer
    idf: np.ndarray  # float32 [vocabulary], of the units and then of their runs
    max_words: int
    ngrams: int = 1
    runs: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # bucket of each run, ascending

    @property
    def vocabulary(self) -> int:
        return len(self.idf)

    @property
    def space(self) -> int | None:
        """The id of the space between words, where units are characters."""
        found: int | None = self.tokenizer.token_to_id(" ")
        return found

    @cached_property
    def id_of_bucket(self) -> np.ndarray:
        """The id of the run in each bucket, int32 [BUCKETS]; 0 where it is unknown."""
        ids = np.zeros(BUCKETS, np.int32)
        ids[self.runs] = np.arange(self.vocabulary - len(self.runs), self.vocabulary)
        return ids

    @classmethod
    def fit(
        cls, texts: Texts, *, min_documents: int, max_words: int, units: str = "words", ngrams: int = 1
    ) -> "TfidfWords":
        """Learn the words that occur in at least `min_documents` of the texts, and runs of them (in at least two, too),
        and their idf.

        Scripts without spaces between words are split further (see `UNSPACED`), where the texts have any: elsewhere
        the step would change nothing.

        Raises `UserError` where there is no such word.
        """
        normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        words = pre_tokenizers.Split(Regex(r"\w+"), behavior="removed", invert=True)
        unspaced = pre_tokenizers.Sequence([words, pre_tokenizers.Split(Regex(UNSPACED), behavior="isolated")])
        splitter: Any = words
        if units == "characters":
            around = normalizers.Replace(Regex(r"\A\W*|\W+|\W*\z"), " ")
            normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), around])
            splitter = pre_tokenizers.Split(Regex(r"."), behavior="isolated")
        documents: Counter[str] = Counter()
        for text in texts:
            normal = normalizer.normalize_str(text)
            if splitter is words and HAS_UNSPACED.search(normal):
                splitter = unspaced
            documents.update({word for word, _ in splitter.pre_tokenize_str(normal)})
        known = sorted((w for w, n in documents.items() if n >= min_documents), key=lambda w: (-documents[w], w))
        if not known:
            raise UserError(
                f"no word occurs in encoder.min_documents={min_documents} of the {len(texts)} training texts, so none "
                "would tell anything about another text; use encoder=transformer, which reads parts of words, or a bag "
                "of runs of characters: encoder.units=characters encoder.ngrams=5"
            )
        tokenizer = Tokenizer(
            models.WordLevel({"[UNK]": 0} | {w: i for i, w in enumerate(known, 1)}, unk_token="[UNK]")
        )
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
        reader = cls(tokenizer, np.zeros(len(known) + 1, np.float32), max_words, ngrams)
        of_runs = np.zeros(BUCKETS if ngrams > 1 else 0, np.int64)
        unread = iter(texts if ngrams > 1 else ())
        while part := list(itertools.islice(unread, untrusted.CHUNK_TEXTS)):
            rows, ids = _flat(next(untrusted.encode_in_chunks(tokenizer, part)))
            cells = [at * BUCKETS + bucket for at, bucket in of_texts(ids, rows, ngrams, reader.space)]
            of_runs += np.bincount(
                np.unique(np.concatenate([[], *cells]).astype(np.int64)) % BUCKETS, minlength=BUCKETS
            )
        # A run of a single text says little that its units do not, and most runs are of a single text.
        reader.runs = np.flatnonzero(of_runs >= max(min_documents, 2))
        frequency = np.concatenate([[documents[w] for w in known], of_runs[reader.runs]])
        idf = np.concatenate([[0.0], 1 + np.log((1 + len(texts)) / (1 + frequency))])
        if reader.space is not None:
            idf[reader.space] = 0  # every text has it
        reader.idf = idf.astype(np.float32)
        return reader

    @classmethod
    def load(cls, directory: Path, *, max_words: int, ngrams: int = 1) -> "TfidfWords":
        """Read what `save` wrote. Raises `UserError` for a missing or damaged file."""
        try:
            with np.errstate(over="ignore"):  # what is too large for float32 is refused below
                idf = np.asarray(_read_json(directory / "idf.json"), np.float32)
        except (TypeError, ValueError, OverflowError):
            idf = np.zeros(0, np.float32)
        tokenizer = untrusted.read(directory / "tokenizer.json", len(idf) if idf.ndim == 1 and len(idf) else None)
        runs = _read_runs(directory / "ngrams.json") if ngrams > 1 else np.zeros(0, np.int64)
        if idf.shape != (tokenizer.get_vocab_size() + len(runs),) or not np.isfinite(idf).all():
            raise UserError(f"{directory / 'idf.json'} is damaged: it should hold a number for each word")
        return cls(tokenizer, idf, max_words, ngrams, runs)

    def save(self, directory: Path) -> None:
        files.write(directory / "tokenizer.json", self.tokenizer.to_str(pretty=True))
        files.write(directory / "idf.json", json.dumps([round(float(x), 6) for x in self.idf]))
        if self.ngrams > 1:
            files.write(directory / "ngrams.json", json.dumps(self.runs.tolist()))

    def __call__(self, raw: Sequence[str]) -> Arrays:
        """`ids` int32 [n, L] and `weights` float32 [n, L] of n texts; padding has weight 0."""
        idf = np.round(self.idf.astype(np.float64), 6).astype(np.float32)  # as it reads back from idf.json
        rows: list[tuple[np.ndarray, np.ndarray]] = []
        for encodings in untrusted.encode_in_chunks(self.tokenizer, raw):
            # The distinct words of all texts at once, as text · vocabulary + word: one sort instead of one per text.
            text, ids = _flat(encodings)
            counted = idf[ids] > 0
            cells = [text[counted] * len(idf) + ids[counted]]
            for at, bucket in of_texts(ids, text, self.ngrams, self.space) if len(self.runs) else ():
                run = self.id_of_bucket[bucket].astype(np.int64)
                cells.append((at * len(idf) + run)[run > 0])
            flat, counts = np.unique(np.concatenate(cells), return_counts=True)
            text, words = np.divmod(flat, len(idf))
            words = words.astype(np.int32)
            weights = ((1 + np.log(counts)) * idf[words]).astype(np.float32)
            ends = np.searchsorted(text, np.arange(1, len(encodings)))
            rows += map(self._select_heaviest, np.split(words, ends), np.split(weights, ends))
        return {"ids": _pad([w for w, _ in rows], np.int32), "weights": _pad([x for _, x in rows], np.float32)}

    def _select_heaviest(self, words: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The heaviest words of a text, and their weights scaled to unit length."""
        if len(words) > self.max_words:
            heaviest = np.sort(np.argsort(-weights, kind="stable")[: self.max_words])
            words, weights = words[heaviest], weights[heaviest]
        return words, weights / max(float(np.sqrt(weights.dot(weights))), 1e-12)


@dataclass
class Subwords:
    """Subword ids and their mask. The tokenizer itself truncates a text."""

    tokenizer: Tokenizer
    cut: int = 0  # texts of the last call that were truncated

    @property
    def vocabulary(self) -> int:
        return self.tokenizer.get_vocab_size()

    @classmethod
    def fit(cls, texts: Texts, *, vocabulary: int, max_length: int, mask_token: bool = False) -> "Subwords":
        """Learn at most `vocabulary` subwords, [MASK] among them if asked for; texts will be truncated to `max_length`
        of them."""
        # Byte-level BPE: its trainer is deterministic, WordPiece's is not; and no text is unknown to it.
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["[PAD]", "[MASK]"] if mask_token else ["[PAD]"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(iter(texts), trainer)  # counts words first, so the order of texts does not matter
        tokenizer.enable_truncation(max_length)
        return cls(tokenizer)

    @classmethod
    def load(cls, directory: Path, *, max_length: int | None) -> "Subwords":
        """Read what `save` wrote. Raises `UserError` for a file that is damaged or does not truncate to `max_length`
        tokens (None: to any number of them)."""
        path = directory / "tokenizer.json"
        tokenizer = untrusted.read(path)
        truncation = tokenizer.truncation or {}
        length = truncation.get("max_length", 0)
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
        if not special < length <= (max_length or length):
            raise UserError(f"{path} is damaged: it cuts texts at {length} tokens, the model at {max_length}")
        tokenizer.enable_truncation(length, direction=truncation["direction"])
        return cls(tokenizer)

    def save(self, directory: Path) -> None:
        files.write(directory / "tokenizer.json", self.tokenizer.to_str(pretty=True))

    def __call__(self, raw: Sequence[str]) -> Arrays:
        """`ids` int32 [n, L] and `mask` int8 [n, L] of n texts; padding has mask 0."""
        self.cut, parts, lengths = 0, [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for encodings in untrusted.encode_in_chunks(self.tokenizer, raw):
            rows = [encoding.ids for encoding in encodings]
            lengths.append(np.fromiter(map(len, rows), np.int64, len(rows)))
            longest = int(lengths[-1].max(initial=0))
            if self.tokenizer.truncation is None or longest >= self.tokenizer.truncation["max_length"]:
                self.cut += sum(bool(encoding.overflowing) for encoding in encodings)
            parts.append(np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths[-1].sum())))
        n = np.concatenate(lengths)
        mask = np.arange(max(int(n.max(initial=0)), 1)) < n[:, None]
        ids = np.zeros(mask.shape, np.int32)
        ids[mask] = np.concatenate(parts)
        return {"ids": ids, "mask": mask.astype(np.int8)}


def _flat(encodings: Sequence[Encoding]) -> tuple[np.ndarray, np.ndarray]:
    """The text and the id of each token of several texts, int64 [tokens]."""
    ids = [encoding.ids for encoding in encodings]
    text = np.repeat(np.arange(len(ids)), [len(row) for row in ids])
    return text, np.fromiter(itertools.chain.from_iterable(ids), np.int64, len(text))


def _read_runs(path: Path) -> np.ndarray:
    """The buckets in a file. Raises `UserError` for a missing or damaged one."""
    content = _read_json(path)
    if (
        not isinstance(content, list)
        or not all(type(x) is int and 0 <= x < BUCKETS for x in content)
        or content != sorted(set(content))
    ):
        raise UserError(f"{path} is damaged: it should hold ascending integers below {BUCKETS}")
    return np.array(content, np.int64)


def _pad(rows: list[np.ndarray], dtype: Any) -> np.ndarray:
    """Rows of unequal length as [n, longest], filled up with zeros; at least one column."""
    padded = np.zeros((len(rows), max([1, *map(len, rows)])), dtype)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
