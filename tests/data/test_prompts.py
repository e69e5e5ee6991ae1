"""Prompts stand before each text by its use, and change nothing else: not which texts are equal, nor what is learnt."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrl_jax import encoders
from mrl_jax.data import Dataset, PairDataset, Pairs, Split, StreamedTexts
from mrl_jax.data.pair_ops import build_pairs, ranking
from mrl_jax.data.prompts import Prompts, put_before
from mrl_jax.data.relevance import search_of
from mrl_jax.encoders.bag import BagConfig
from mrl_jax.system.errors import UserError
from mrl_jax.training.batches import Examples, PairExamples

LETTERS = st.sampled_from("abcdef")
ROWS = st.integers(2, 4).flatmap(lambda c: st.lists(st.lists(LETTERS, min_size=c, max_size=c), min_size=1))
NAMES = st.sampled_from(["query", "document", "passage", "default", "other"])
PROMPTS = st.dictionaries(NAMES, st.sampled_from(["", "q ", "d "]))


def expected(prompts: dict[str, str], use: str) -> str:
    """The prompt of a use, by the table of the documentation."""
    names = {"query": ["query"], "document": ["document", "passage", "corpus"], "default": []}[use]
    return [*(prompts[name] for name in [*names, "default"] if name in prompts), ""][0]


def prompted(pairs: Pairs, prompts: dict[str, str]) -> PairDataset:
    is_ranked = pairs.scores is None and not isinstance(pairs.table, StreamedTexts)
    dataset = PairDataset("made", "text", pairs, pairs, ranking(pairs) if is_ranked else pairs)
    return put_before(dataset, Prompts(prompts))


def streamed(pairs: Pairs) -> Pairs:
    """The same pairs, their table every other text of a source on disk."""
    source = [text for kept in pairs.table for text in ("unused", kept)]
    rows = np.arange(1, len(source), 2, dtype=np.int32)
    return Pairs(StreamedTexts(lambda: iter(source), len(source), "made", rows), pairs.columns, pairs.scores)


@given(ROWS, PROMPTS, st.booleans())
def test_each_text_of_a_pair_has_the_prompt_of_its_use(
    rows: list[list[str]], prompts: dict[str, str], scored: bool
) -> None:
    rows = [row[:2] for row in rows] if scored else rows
    pairs = build_pairs(list(zip(*rows, strict=True)), np.zeros(len(rows), np.float32) if scored else None)
    uses = ["default"] * 2 if scored else ["query", *["document"] * (len(rows[0]) - 1)]
    wanted = [[expected(prompts, use) + text for use, text in zip(uses, row, strict=True)] for row in rows]
    dataset = prompted(pairs, prompts)
    table, columns = list(dataset.train.table), dataset.train.columns
    assert [[table[row] for row in columns_of_row] for columns_of_row in columns] == wanted
    assert len(table) <= len({(text, use) for row in rows for text, use in zip(row, uses, strict=True)})
    ids = columns if dataset.train.text_ids is None else dataset.train.text_ids
    np.testing.assert_array_equal(ids, pairs.columns)
    on_disk = prompted(streamed(pairs), prompts).train
    assert list(on_disk.table) == table
    np.testing.assert_array_equal(on_disk.columns, columns)


@given(ROWS)
def test_what_is_relevant_and_what_is_a_negative_does_not_depend_on_prompts(rows: list[list[str]]) -> None:
    pairs = build_pairs(list(zip(*rows, strict=True)))
    dataset = prompted(pairs, {"query": "q ", "document": "d "})
    plain, found = search_of(pairs.columns), search_of(dataset.train.columns, dataset.train.text_ids)
    for prompt, before, after in (("q ", plain.queries, found.queries), ("d ", plain.documents, found.documents)):
        assert [prompt + pairs.table[row] for row in before] == [dataset.train.table[row] for row in after]
    np.testing.assert_array_equal(found.judgments, plain.judgments)
    np.testing.assert_array_equal(found.own, plain.own)
    np.testing.assert_array_equal(dataset.test.judgments, ranking(pairs).judgments)
    assert [text[:2] for text in dataset.test.queries] == ["q "] * len(dataset.test.queries)
    assert [text[2:] for text in dataset.test.documents] == list(ranking(pairs).documents)
    labels = []
    for part in (pairs, dataset.train):
        table = Examples({"features": np.zeros((len(part.table), 1))}, np.zeros(len(part.table)))
        examples = PairExamples(table, part.columns, None, mask_known=True, text_ids=part.text_ids)
        labels.append(examples.take(np.arange(len(part)))["label"])
    np.testing.assert_array_equal(*labels)


def test_texts_of_classes_have_the_default_prompt_and_words_of_it_are_learnt() -> None:
    split = Split(["orbit of a comet", "a goal"], np.array([0, 1], np.int32))
    dataset = put_before(Dataset("made", "text", ("a", "b"), split, split, split), Prompts({"default": "topic: "}))
    assert dataset.test.inputs == ["topic: orbit of a comet", "topic: a goal"]
    words = encoders.fit(BagConfig(min_documents=2), "made", "text", dataset.train.raw)
    assert "topic" in words.tokenizer.get_vocab()


def test_texts_on_disk_are_kept_apart_by_their_prompt() -> None:
    texts, labels = StreamedTexts(lambda: iter(["a", "b"]), 2, "made"), np.zeros(2, np.int32)
    split = Split(texts, labels)
    dataset = Dataset("made", "text", ("a",), split, split, split)
    found = [put_before(dataset, Prompts({"default": prompt})).train.inputs for prompt in ("", "x ", "y ")]
    assert len({one.key for one in found}) == 3
    assert found[0].key == texts.key
    assert list(found[1]) == ["x a", "x b"]


def test_data_without_texts_has_no_prompts() -> None:
    split = Split(np.zeros((2, 3), np.float32), np.zeros(2, np.int32))
    dataset = Dataset("made", "features", ("a",), split, split, split)
    assert put_before(dataset, Prompts({"query": ""})) is dataset
    with pytest.raises(UserError, match=r"data.prompts={'query': 'q: '} is not allowed; made holds features"):
        put_before(dataset, Prompts({"query": "q: "}))


@given(st.lists(PROMPTS, min_size=2, max_size=2))
def test_other_prompts_are_another_identity(both: list[dict[str, str]]) -> None:
    one, other = (Prompts(texts).identity for texts in both)
    uses: list[Any] = [[Prompts(texts).of(use) for use in ("query", "document", None)] for texts in both]
    assert one != other or uses[0] == uses[1]
    assert Prompts({"default": "x: "}).identity == "x: "  # as indexes of earlier versions have it
    assert Prompts(dict(reversed(both[0].items()))).identity == one
