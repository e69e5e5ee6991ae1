"""How raw examples become the arrays that an encoder reads; kept with the run, so that a loaded model reads alike.

    bag           texts → `ids`, `weights`: the heaviest distinct words by tf-idf
    transformer   texts → `ids`, `mask`: subwords
    convnet, mlp  images → `image`;  mlp also features → `features`

Each text is tokenised once, before training. A tokenizer is a function of the training texts alone, not of their order
or of the machine.
"""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mrl_jax import files
from mrl_jax.data import Dataset, PairDataset
from mrl_jax.encoders import EncoderConfig, transformer
from mrl_jax.encoders.bag import BagConfig
from mrl_jax.encoders.transformer import TransformerConfig
from mrl_jax.errors import UserError
from mrl_jax.text import untrusted

Arrays = dict[str, Any]  # name → array [n, …] (images too many for memory: a lazy object indexed by rows)

READS = {"bag": ("text",), "transformer": ("text",), "convnet": ("image",), "mlp": ("features", "image")}


class Reader(Protocol):
    """Raw inputs of one kind → named arrays."""

    @property
    def vocabulary(self) -> int:
        """Number of token ids; 0 where there are no tokens."""
        ...

    def __call__(self, raw: Any) -> Arrays: ...

    def save(self, directory: Path) -> None: ...


def fit(encoder: EncoderConfig, dataset: Dataset | PairDataset) -> Reader:
    """The reader for an encoder, learnt from the training split. Raises `UserError` when the two do not go together."""
    check(encoder, dataset)
    texts = dataset.train.inputs if isinstance(dataset, Dataset) else dataset.train.table
    if isinstance(encoder, BagConfig):
        return Words.fit(cast(Sequence[str], texts), encoder)
    if isinstance(encoder, TransformerConfig):
        return Subwords.fit(cast(Sequence[str], texts), encoder)
    return Plain(dataset.kind)


def check(encoder: EncoderConfig, dataset: Dataset | PairDataset) -> None:
    """Raise `UserError` for an encoder that cannot read what the data set holds."""
    if dataset.kind not in READS[encoder.name]:
        fitting = ", ".join(name for name, kinds in READS.items() if dataset.kind in kinds)
        raise UserError(f"encoder={encoder.name} cannot read {dataset.kind}, which {dataset.name} holds; use {fitting}")


def load(encoder: EncoderConfig, directory: Path, kind: str) -> Reader:
    """The reader that was saved with a run."""
    if isinstance(encoder, BagConfig):
        return Words.load(directory, encoder)
    if isinstance(encoder, TransformerConfig):
        return Subwords.load(directory, encoder)
    return Plain(kind)


@dataclass
class Plain:
    """Images and features: what is read is what the encoder gets."""

    kind: str
    vocabulary: int = 0

    def __call__(self, raw: Any) -> Arrays:
        return {self.kind: raw}

    def save(self, directory: Path) -> None:
        pass


@dataclass
class Words:
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
    def fit(cls, texts: Sequence[str], config: BagConfig) -> "Words":
        normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        splitter = pre_tokenizers.Split(Regex(r"\w+"), behavior="removed", invert=True)
        documents: Counter[str] = Counter()
        for text in texts:
            documents.update({word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))})
        known = sorted((w for w, n in documents.items() if n >= config.min_documents), key=lambda w: (-documents[w], w))
        if not known:
            raise UserError(
                f"no word occurs in encoder.min_documents={config.min_documents} of the {len(texts)} training texts; "
                "use encoder.min_documents=1 or longer texts"
            )
        tokenizer = Tokenizer(
            models.WordLevel({"[UNK]": 0} | {w: i for i, w in enumerate(known, 1)}, unk_token="[UNK]")
        )
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
        frequency = np.array([documents[w] for w in known])
        idf = np.concatenate([[0.0], 1 + np.log((1 + len(texts)) / (1 + frequency))])
        return cls(tokenizer, idf.astype(np.float32), config.max_words)

    @classmethod
    def load(cls, directory: Path, config: BagConfig) -> "Words":
        try:
            with np.errstate(over="ignore"):  # what is too large for float32 is refused below
                idf = np.asarray(_read_json(directory / "idf.json"), np.float32)
        except (TypeError, ValueError, OverflowError):
            idf = np.zeros(0, np.float32)
        tokenizer = untrusted.read(directory / "tokenizer.json", len(idf) if idf.ndim == 1 and len(idf) else None)
        if idf.shape != (tokenizer.get_vocab_size(),) or not np.isfinite(idf).all():
            raise UserError(f"{directory / 'idf.json'} is damaged: it should hold a number for each word")
        return cls(tokenizer, idf, config.max_words)

    def save(self, directory: Path) -> None:
        files.write(directory / "tokenizer.json", self.tokenizer.to_str(pretty=True))
        files.write(directory / "idf.json", json.dumps([round(float(x), 6) for x in self.idf]))

    def __call__(self, raw: Sequence[str]) -> Arrays:
        idf = np.round(self.idf.astype(np.float64), 6).astype(np.float32)  # as it reads back from idf.json
        rows: list[tuple[np.ndarray, np.ndarray]] = []
        for encodings in untrusted.encoded(self.tokenizer, raw):
            # The distinct words of all texts at once, as text · vocabulary + word: one sort instead of one a text.
            ids = [encoding.ids for encoding in encodings]
            text = np.repeat(np.arange(len(ids)), [len(row) for row in ids])
            flat = np.fromiter(itertools.chain.from_iterable(ids), np.int64, len(text))
            cells, counts = np.unique((text * len(idf) + flat)[flat > 0], return_counts=True)
            text, words = np.divmod(cells, len(idf))
            words = words.astype(np.int32)
            weights = ((1 + np.log(counts)) * idf[words]).astype(np.float32)
            ends = np.searchsorted(text, np.arange(1, len(ids)))
            rows += map(self._unit, np.split(words, ends), np.split(weights, ends))
        return {"ids": _padded([w for w, _ in rows], np.int32), "weights": _padded([x for _, x in rows], np.float32)}

    def _unit(self, words: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The heaviest words of a text, and their weights scaled to unit length."""
        if len(words) > self.max_words:
            heaviest = np.sort(np.argsort(-weights, kind="stable")[: self.max_words])
            words, weights = words[heaviest], weights[heaviest]
        return words, weights / max(float(np.sqrt(weights.dot(weights))), 1e-12)


@dataclass
class Subwords:
    """Subword ids and their mask. The tokenizer knows where to cut."""

    tokenizer: Tokenizer
    cut: int = 0  # texts of the last call that were longer than that

    @property
    def vocabulary(self) -> int:
        return self.tokenizer.get_vocab_size()

    @classmethod
    def fit(cls, texts: Sequence[str], config: TransformerConfig) -> "Subwords":
        if config.weights is not None:
            from mrl_jax.encoders import huggingface

            folder = huggingface.resolve(config.weights)
            return cls(huggingface.load_tokenizer(folder, config.max_length))
        # Byte-level BPE: its trainer is deterministic, WordPiece's is not; and no text is unknown to it.
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocabulary,
            special_tokens=["[PAD]"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(iter(texts), trainer)  # it counts words first, so their order is no matter
        tokenizer.enable_truncation(config.max_length or transformer.SCRATCH.positions)
        return cls(tokenizer)

    @classmethod
    def load(cls, directory: Path, config: TransformerConfig) -> "Subwords":
        path = directory / "tokenizer.json"
        tokenizer = untrusted.read(path)
        longest = (tokenizer.truncation or {}).get("max_length", 0)
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
        if not special < longest <= (config.max_length or longest):
            raise UserError(f"{path} is damaged: it cuts texts at {longest} tokens, the model at {config.max_length}")
        tokenizer.enable_truncation(longest)
        return cls(tokenizer)

    def save(self, directory: Path) -> None:
        files.write(directory / "tokenizer.json", self.tokenizer.to_str(pretty=True))

    def __call__(self, raw: Sequence[str]) -> Arrays:
        self.cut, ids = 0, []
        for encodings in untrusted.encoded(self.tokenizer, raw):
            self.cut += sum(bool(encoding.overflowing) for encoding in encodings)
            ids += [np.asarray(encoding.ids, np.int32) for encoding in encodings]
        return {"ids": _padded(ids, np.int32), "mask": _padded([np.ones(len(row)) for row in ids], np.int8)}


def _padded(rows: list[np.ndarray], dtype: Any) -> np.ndarray:
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
