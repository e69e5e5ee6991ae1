"""Prompts: what stands before a text, by the use that is made of it.

    query       before an anchor of pairs (a caption is one), and a query of a search
    document    before positives and negatives, and what is searched; also called passage or corpus
    default     before every other text, and before queries or documents that have no prompt of their own

A prompt of another name, as model folders have them, is for `encode(texts, prompt=name)`. Prompts are put before texts
here, in training and in use: everything behind sees texts, and not where one begins.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from tokenizers import Tokenizer

from mrl_jax.data.base import Dataset, PairDataset, Pairs, Ranking, Split
from mrl_jax.data.inputs import LazyInputs, StreamedTexts, Table, compact
from mrl_jax.system.errors import UserError, nearest, one_of

DEFAULT = "default"
AnyDataset = TypeVar("AnyDataset", bound=Dataset | PairDataset)

ROLES = {"query": ("query",), "document": ("document", "passage", "corpus")}  # and the names that a prompt may have


@dataclass(frozen=True)
class Prompts:
    """The prompts of a model, by name."""

    texts: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str | None = None) -> str:
        """The prompt of a role or a name, by default that of every other text. Raises `UserError` for another name."""
        if name is not None:
            one_of("prompt", name, {**ROLES, **self.texts})
        names = (*ROLES.get(str(name), (name,)), DEFAULT)
        return next((self.texts[each] for each in names if each in self.texts), "")

    @property
    def identity(self) -> str:
        """Equal where the prompts are; of a default alone it is the prompt itself, as before there were others."""
        alone = self.texts.keys() <= {DEFAULT}
        return self.of() if alone else json.dumps(self.texts, sort_keys=True, ensure_ascii=False)

    def likely_typos(self) -> list[str]:
        """A sentence for each name that is nearly that of a use which has no prompt."""
        uses = (*ROLES.values(), (DEFAULT,))
        without = [name for names in uses if not self.texts.keys() & {*names} for name in names]
        return [
            f"data.prompts.{name} stands before no text unless it is asked for by name{hint}"
            for name in self.texts
            if not any(name in names for names in uses) and (hint := nearest(name, without))
        ]

    def check_room(self, tokenizer: Tokenizer | None) -> None:
        """Raise `UserError` for a prompt that leaves no token to a text, where the tokenizer cuts texts."""
        if tokenizer is None or tokenizer.truncation is None:
            return
        longest = tokenizer.truncation["max_length"]
        for name, text in self.texts.items():
            if text and len(tokenizer.encode(text).ids) >= longest:
                raise UserError(
                    f"data.prompts: {name}={json.dumps(text, ensure_ascii=False)} leaves no room for a text, which is "
                    f"cut at encoder.max_length={longest} tokens; give a shorter prompt, or a greater length"
                )


NO_PROMPTS = Prompts()


def put(prompt: str, texts: Any) -> Any:
    """Each text with the prompt before it; what is no text stays, for the tokenizer to name it."""
    if not prompt or isinstance(texts, LazyInputs):  # which are no texts
        return texts
    return [prompt + text if isinstance(text, str) else text for text in texts]


def put_before(dataset: AnyDataset, prompts: Prompts) -> AnyDataset:
    """The data set with the prompts before its texts. Raises `UserError` where it holds something else."""
    if not any(prompts.texts.values()):
        return dataset
    if dataset.kind not in ("text", "image-text"):
        raise UserError(f"data.prompts={dict(prompts.texts)} is not allowed; {dataset.name} holds {dataset.kind}")
    put_part = _put_captions if dataset.kind == "image-text" else _put
    parts: Any = {name: put_part(getattr(dataset, name), prompts) for name in ("train", "validation", "test")}
    if isinstance(dataset, Dataset):
        parts["probes"] = {name: _put(probe, prompts) for name, probe in dataset.probes.items()}
    return replace(dataset, **parts)


def _put(part: Split | Pairs | Ranking, prompts: Prompts) -> Split | Pairs | Ranking:
    if isinstance(part, Split):
        return replace(part, inputs=_before(part.inputs, (prompts.of(),)))
    query, document = prompts.of("query"), prompts.of("document")
    if isinstance(part, Ranking):
        return replace(part, queries=put(query, part.queries), documents=put(document, part.documents))
    if part.scores is not None:  # neither text is the query
        query = document = prompts.of()
    if query == document:
        return replace(part, table=_before(part.table, (query,)))
    rows = 2 * part.columns + (np.arange(part.columns.shape[1]) > 0)
    table, columns = compact(_before(part.table, (query, document)), rows.astype(np.int32))
    return Pairs(table, columns, part.scores, part.columns)


def _put_captions(part: Any, prompts: Prompts) -> Pairs | Ranking:
    """Captions are queries, and nothing stands before pictures."""
    query = prompts.of("query")
    if isinstance(part, Ranking):
        return replace(part, queries=put(query, part.queries))
    captioned: Any = part.table  # `CaptionedImages`
    pairs: Pairs = replace(part, table=replace(captioned, texts=put(query, captioned.texts)))
    return pairs


def _before(texts: Any, prompts: tuple[str, ...]) -> Table:
    """The texts with each of n prompts: text i with prompt p is row n · i + p."""
    if not isinstance(texts, StreamedTexts):
        return [prompt + text for text in texts for prompt in prompts]
    count, rows = len(prompts), texts.rows
    if rows is not None:
        rows = (count * rows[:, None] + np.arange(count)).ravel().astype(np.int32)
    digest = f"{texts.digest} {json.dumps(prompts)}"
    return StreamedTexts(partial(_stream, texts, prompts), count * texts.total, digest, rows)


def _stream(texts: StreamedTexts, prompts: tuple[str, ...]) -> Iterator[str]:
    return (prompt + text for text in texts.read() for prompt in prompts)
