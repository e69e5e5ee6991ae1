"""Preprocessors: how raw examples become the arrays that an encoder reads. They are saved with a run.

    TfidfWords    texts → `ids`, `weights`: the heaviest distinct words by tf-idf
    Subwords      texts → `ids`, `mask`: tokens in their order
    Passthrough   images → `image`, or features → `features`

Each text is tokenised once, before training. What a preprocessor learns depends on the set of the training texts alone,
not on their order or on the machine.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mrl_jax import files
from mrl_jax.errors import UserError
from mrl_jax.text import untrusted

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
        return {self.kind: raw}

    def save(self, directory: Path) -> None:
        pass


@dataclass
class TfidfWords:
    """Distinct words weighted by sublinear tf × idf and scaled to unit length, the heaviest `max_words` of a text.

        w = (1 + ln tf) · (1 + ln((1 + n) / (1 + df)))                      (scikit-learn's smoothed idf)

    A text without a known word has no weights at all: its embedding is that of the empty text.
    """

    tokenizer: Tokenizer
    idf: np.ndarray  # float32 [vocabulary]
    max_words: int

    @property
    def vocabulary(self) -> int:
        return len(self.idf)

    @classmethod
    def fit(cls, texts: Texts, *, min_documents: int, max_words: int) -> "TfidfWords":
        """Learn the words that occur in at least `min_documents` of the texts, and their idf.

        Raises `UserError` where there is no such word.
        """
        normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        splitter = pre_tokenizers.Split(Regex(r"\w+"), behavior="removed", invert=True)
        documents: Counter[str] = Counter()
        for text in texts:
            documents.update({word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))})
        known = sorted((w for w, n in documents.items() if n >= min_documents), key=lambda w: (-documents[w], w))
        if not known:
            raise UserError(
                f"no word occurs in encoder.min_documents={min_documents} of the {len(texts)} training texts; "
                "use encoder.min_documents=1 or longer texts"
            )
        tokenizer = Tokenizer(
            models.WordLevel({"[UNK]": 0} | {w: i for i, w in enumerate(known, 1)}, unk_token="[UNK]")
        )
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
        frequency = np.array([documents[w] for w in known])
        idf = np.concatenate([[0.0], 1 + np.log((1 + len(texts)) / (1 + frequency))])
        return cls(tokenizer, idf.astype(np.float32), max_words)

    @classmethod
    def load(cls, directory: Path, *, max_words: int) -> "TfidfWords":
        """Read what `save` wrote. Raises `UserError` for a missing or damaged file."""
        try:
            with np.errstate(over="ignore"):  # what is too large for float32 is refused below
                idf = np.asarray(_read_json(directory / "idf.json"), np.float32)
        except (TypeError, ValueError, OverflowError):
            idf = np.zeros(0, np.float32)
        tokenizer = untrusted.read(directory / "tokenizer.json", len(idf) if idf.ndim == 1 and len(idf) else None)
        if idf.shape != (tokenizer.get_vocab_size(),) or not np.isfinite(idf).all():
            raise UserError(f"{directory / 'idf.json'} is damaged: it should hold a number for each word")
        return cls(tokenizer, idf, max_words)

    def save(self, directory: Path) -> None:
        files.write(directory / "tokenizer.json", self.tokenizer.to_str(pretty=True))
        files.write(directory / "idf.json", json.dumps([round(float(x), 6) for x in self.idf]))

    def __call__(self, raw: Sequence[str]) -> Arrays:
        """`ids` int32 [n, L] and `weights` float32 [n, L] of n texts; padding has weight 0."""
        idf = np.round(self.idf.astype(np.float64), 6).astype(np.float32)  # as it reads back from idf.json
        rows: list[tuple[np.ndarray, np.ndarray]] = []
        for encodings in untrusted.encode_in_chunks(self.tokenizer, raw):
            # The distinct words of all texts at once, as text · vocabulary + word: one sort instead of one per text.
            ids = [encoding.ids for encoding in encodings]
            text = np.repeat(np.arange(len(ids)), [len(row) for row in ids])
            flat = np.fromiter(itertools.chain.from_iterable(ids), np.int64, len(text))
            cells, counts = np.unique((text * len(idf) + flat)[flat > 0], return_counts=True)
            text, words = np.divmod(cells, len(idf))
            words = words.astype(np.int32)
            weights = ((1 + np.log(counts)) * idf[words]).astype(np.float32)
            ends = np.searchsorted(text, np.arange(1, len(ids)))
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
    def fit(cls, texts: Texts, *, vocabulary: int, max_length: int) -> "Subwords":
        """Learn at most `vocabulary` subwords; texts will be truncated to `max_length` of them."""
        # Byte-level BPE: its trainer is deterministic, WordPiece's is not; and no text is unknown to it.
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["[PAD]"],
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
        length = (tokenizer.truncation or {}).get("max_length", 0)
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
        if not special < length <= (max_length or length):
            raise UserError(f"{path} is damaged: it cuts texts at {length} tokens, the model at {max_length}")
        tokenizer.enable_truncation(length)
        return cls(tokenizer)

    def save(self, directory: Path) -> None:
        files.write(directory / "tokenizer.json", self.tokenizer.to_str(pretty=True))

    def __call__(self, raw: Sequence[str]) -> Arrays:
        """`ids` int32 [n, L] and `mask` int8 [n, L] of n texts; padding has mask 0."""
        self.cut, ids = 0, []
        for encodings in untrusted.encode_in_chunks(self.tokenizer, raw):
            self.cut += sum(bool(encoding.overflowing) for encoding in encodings)
            ids += [np.asarray(encoding.ids, np.int32) for encoding in encodings]
        return {"ids": _pad(ids, np.int32), "mask": _pad([np.ones(len(row)) for row in ids], np.int8)}


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
