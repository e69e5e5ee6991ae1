"""`data.group_repeats`: examples that count as the same are on one side of the validation cut."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import write_table
from hypothesis import given
from hypothesis import strategies as st

from mrl_jax.data import DataConfig, load, repeats
from mrl_jax.data.base import Split
from mrl_jax.data.cuts import connected, cut, normal, same
from mrl_jax.data.pair_ops import build_pairs
from mrl_jax.system.errors import UserError

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=80)
FRACTIONS = st.floats(0, 0.9)


@given(ROWS, FRACTIONS)
def test_no_group_is_on_both_sides_and_every_class_has_its_share(rows: list[Any], fraction: float) -> None:
    labels, groups = np.array(rows).T
    kept, held_out = cut(labels, fraction, groups)
    again = cut(labels, fraction, groups)
    assert all(np.array_equal(a, b) for a, b in zip((kept, held_out), again, strict=True))
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    assert not set(groups[kept]) & set(groups[held_out])
    room = {
        int(x): min(round(fraction * n), n - 1) for x, n in zip(*np.unique(labels, return_counts=True), strict=True)
    }
    left = {label: most - np.sum(labels[held_out] == label) for label, most in room.items()}
    assert all(n >= 0 for n in left.values())
    for group in set(groups[kept]):  # none that is left would have fitted
        counts = zip(*np.unique(labels[groups == group], return_counts=True), strict=True)
        assert any(n > left[label] for label, n in counts)


@given(ROWS, FRACTIONS)
def test_without_repeats_the_cut_is_the_plain_one(rows: list[Any], fraction: float) -> None:
    labels = np.array(rows)[:, 0]
    alone = np.random.default_rng(0).permutation(len(labels))
    for grouped, plain in zip(cut(labels, fraction, alone), cut(labels, fraction), strict=True):
        np.testing.assert_array_equal(grouped, plain)


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=12))
def test_components_are_those_of_a_search(edges: list[Any]) -> None:
    a, b = np.array(edges, int).reshape(-1, 2).T
    components = [{node} for node in range(12)]
    for one, other in edges:
        joined = components[one] | components[other]
        for node in joined:
            components[node] = joined
    assert connected(12, a, b).tolist() == [min(component) for component in components]


@given(st.lists(st.tuples(*[st.integers(0, 25)] * 2), min_size=2, max_size=60), st.booleans(), st.floats(0.05, 0.6))
def test_a_pair_is_on_one_side_however_it_is_written(rows: list[Any], scored: bool, fraction: float) -> None:
    def written(side: int) -> list[str]:
        return [f"Text {row[side]}!" if i % 2 else f"text, {row[side]}" for i, row in enumerate(rows)]

    pairs = build_pairs([written(0), written(1)], np.zeros(len(rows), np.float32) if scored else None)
    try:
        parts = pairs.cut(fraction, group_repeats=True)
    except UserError:  # one group has all anchors, say
        return
    words = [[tuple(normal(pairs.table[i]) for i in pairs.columns[row]) for row in part] for part in parts]
    kept, out = words
    assert len(kept) + len(out) == len(rows)
    assert not {a for a, _ in kept} & {a for a, _ in out}
    assert not {frozenset(pair) for pair in kept} & {frozenset(pair) for pair in out}
    if scored:
        assert not {text for pair in kept for text in pair} & {text for pair in out for text in pair}
    anchors = [len({pairs.columns[row, 0] for row in part}) for part in parts]
    assert anchors[1] <= round(fraction * sum(anchors))


def test_a_source_has_no_repeat_across_its_cut(capsys: pytest.CaptureFixture[str]) -> None:
    plain, grouped = (load(DataConfig("reuters_r8", group_repeats=together)) for together in (False, True))
    assert repeats.count(plain)["validation"] > 0
    assert repeats.count(grouped)["validation"] == 0
    assert len(grouped.validation) == len(plain.validation)
    assert np.array_equal(np.bincount(grouped.validation.labels), np.bincount(plain.validation.labels))
    assert "held out instead" not in capsys.readouterr().err


def test_a_group_that_is_too_large_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same_text = [{"text": "Again!" if i % 2 else "again", "label": "a"} for i in range(18)]
    rows = [*same_text, *({"text": f"other {i}", "label": "a"} for i in range(2))]
    file = write_table(tmp_path / "rows.jsonl", rows)
    config = {"train": file, "test": file, "group_repeats": True}
    assert len(load(DataConfig("files", **config, validation_fraction=0.5)).validation) == 2
    assert capsys.readouterr().err == (
        "data.group_repeats=true: 2 examples are held out instead of 10, as groups of repeats (up to 18 examples) are "
        "not divided\n"
    )
    file = write_table(tmp_path / "rows.jsonl", same_text)
    with pytest.raises(UserError, match="holds out none of 18 examples: all groups of repeats are too large, up to 18"):
        load(DataConfig("files", **config, validation_fraction=0.5))
    with pytest.raises(UserError, match="group_repeats=true is only for a validation part that is cut from train"):
        load(DataConfig("files", **config, validation=file))


def test_features_are_grouped_by_all_their_numbers() -> None:
    x = np.arange(8, dtype=np.float32).reshape(4, 2)[[0, 1, 2, 0, 1, 3]]
    np.testing.assert_array_equal(same(x)[:, None] == same(x), (x[:, None] == x).all(axis=2))
    kept, held_out = Split(x, np.zeros(6, np.int32)).cut(0.4, group_repeats=True)
    assert (len(kept), len(held_out)) == (4, 2)
    assert not set(same(x)[kept]) & set(same(x)[held_out])
