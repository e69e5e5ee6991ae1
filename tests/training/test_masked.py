"""Batches with hidden tokens: a function of (seed, step) in training, of the text alone elsewhere."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mrl_jax.text.masking import Vocabulary
from mrl_jax.training import batches
from mrl_jax.training.batches import Examples
from mrl_jax.training.masked import MaskedExamples

SPECIAL, SIZE = 5, 60  # ids below are special, 4 is the mask token


def vocabulary() -> Vocabulary:
    is_ordinary = np.arange(SIZE) >= SPECIAL
    return Vocabulary(4, np.flatnonzero(is_ordinary).astype(np.int32), is_ordinary)


def examples(count: int = 40, seed: int = 0, rate: float = 0.15, **options: int) -> MaskedExamples:
    """Texts of 3 to 30 tokens, the first and the last of which are special."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 31, count)
    mask = np.arange(30) < lengths[:, None]
    ids = np.where(mask, rng.integers(SPECIAL, SIZE, mask.shape), 0).astype(np.int32)
    ids[:, 0] = 2
    ids[np.arange(count), lengths - 1] = 3
    table = Examples({"ids": ids, "mask": mask.astype(np.int8)}, np.zeros(count, np.int32))
    return MaskedExamples(table, vocabulary(), rate, **options)


def restored(batch: dict[str, np.ndarray], part: slice = slice(None)) -> list[list[int]]:
    """The texts of a batch with their hidden tokens put back, in the order of the packing."""
    ids, segment = batch["ids"][part].copy(), batch["segment"][part]
    counted = batch["label"][:, 0] >= 0
    ids.ravel()[batch["masked"][counted]] = batch["label"][counted, 0]
    return [
        row[of == number].tolist() for row, of in zip(ids, segment, strict=True) for number in range(1, of.max() + 1)
    ]


def first_batches(made: MaskedExamples, seed: int, steps: int, start: int = 0) -> list[dict[str, np.ndarray]]:
    return [made.take(rows) for rows in made.stream(seed, 8, start, start + steps)]


@given(st.integers(0, 1000))
def test_a_batch_holds_its_texts_and_says_what_stood_in_the_hidden_cells(seed: int) -> None:
    made = examples(seed=seed)
    (rows,) = made.stream(seed, 8, 0, 1)
    batch = made.take(rows)
    originals = [made.table.inputs["ids"][row, : made.token_counts[row]].tolist() for row in np.asarray(rows)[:, 0]]
    assert sorted(restored(batch)) == sorted(originals)
    tokens, texts = batch["label"].T
    counted = tokens >= 0
    assert (tokens[counted] >= SPECIAL).all()
    assert (texts[~counted] == -1).all()
    assert len(set(batch["masked"][counted])) == counted.sum()
    segment_of = batch["segment"].ravel()[batch["masked"][counted]]
    assert (segment_of > 0).all()
    for token, text in zip(tokens[counted], texts[counted], strict=True):
        assert token in originals[text]
    changed = {2, 3} & set(batch["ids"].ravel()[batch["masked"][counted]])
    assert not changed  # no special token but the mask replaces another


def test_training_hides_the_share_of_tokens_that_is_asked_for() -> None:
    made, hidden, ordinary = examples(200), 0, 0
    for rows in made.stream(0, 50, 0, 60):
        batch = made.take(rows)
        hidden += (batch["label"][:, 0] >= 0).sum()
        ordinary += (made.token_counts[rows[:, 0]] - 2).sum()
    assert abs(hidden / ordinary - 0.15) < 0.004


def test_masks_are_a_function_of_seed_and_step() -> None:
    whole = first_batches(examples(), 0, 6)
    later = first_batches(examples(), 0, 3, start=3)
    for a, b in zip(whole[3:], later, strict=True):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)
    other = first_batches(examples(), 1, 1)[0]
    assert not np.array_equal(other["label"], whole[0]["label"])
    made = examples(8)  # an epoch a step: the same texts, other tokens
    one, two = (set(map(tuple, batch["label"].tolist())) for batch in first_batches(made, 0, 2))
    assert one != two


def test_members_of_one_seed_see_the_same_tokens_hidden() -> None:
    made = examples()
    (rows,) = made.stream(0, 8, 0, 1)
    both, alone = made.stack([rows, rows], 64), made.take(rows, 64)
    for name, array in both.items():
        np.testing.assert_array_equal(array, np.stack([alone[name]] * 2))


def test_outside_of_training_a_text_has_the_same_hidden_tokens_in_any_batch() -> None:
    made = examples(20)

    def hidden(batch: dict[str, np.ndarray], rows: np.ndarray) -> dict[int, list[tuple[int, ...]]]:
        found: dict[int, list[tuple[int, ...]]] = {}
        for (token, text), cell in zip(batch["label"].tolist(), batch["masked"], strict=True):
            if token >= 0:
                place = batch["position"].ravel()[cell], token, batch["ids"].ravel()[cell]
                found.setdefault(int(rows[text]), []).append(tuple(map(int, place)))
        return {row: sorted(places) for row, places in found.items()}

    whole = hidden(made.take(np.arange(20)), np.arange(20))
    assert whole.keys() == set(range(20))  # each text has at least one
    for rows, batch, valid in batches.slices(made, 8):
        padded = np.resize(rows, len(valid))
        for row, places in hidden(batch, padded).items():
            assert sorted(set(places)) == whole[row]


def test_parts_of_a_batch_have_one_shape_and_cells_of_their_own() -> None:
    made = examples(chunks=2, multiple=2)
    (rows,) = made.stream(0, 8, 0, 1)
    batch = made.take(rows)
    half, size = len(batch["ids"]) // 2, len(batch["masked"]) // 2
    assert half % 2 == 0
    assert size % 2 == 0
    texts = []
    for part in range(2):
        own = {name: x[part * half : (part + 1) * half] for name, x in batch.items() if name not in ("masked", "label")}
        own |= {name: batch[name][part * size : (part + 1) * size] for name in ("masked", "label")}
        assert own["label"][:, 1].max() < 4
        texts += restored(own)
    originals = [made.table.inputs["ids"][row, : made.token_counts[row]].tolist() for row in rows[:, 0]]
    assert sorted(texts) == sorted(originals)


def test_the_number_of_predictions_follows_from_the_rows_alone() -> None:
    made = examples(300, rate=0.5)
    shapes = {batch["ids"].shape: set() for batch in first_batches(made, 0, 20)}  # type: ignore[var-annotated]
    for batch in first_batches(made, 0, 20):
        shapes[batch["ids"].shape].add(batch["label"].shape)
    assert all(len(of) == 1 for of in shapes.values())


def test_texts_without_a_token_are_passed_over_and_the_table_stays_as_it_is() -> None:
    """Tables that stay on disk are not read for it."""
    whole = examples(40)
    kept = np.flatnonzero(np.arange(40) % 3)
    some = MaskedExamples(whole.table, vocabulary(), 0.15, kept=kept)
    assert some.table is whole.table
    assert len(some) == len(kept)
    np.testing.assert_array_equal(some.token_counts, whole.token_counts[kept])
    texts = whole.table.subset(kept)
    alone = MaskedExamples(texts, vocabulary(), 0.15)
    for ours, theirs in zip(first_batches(some, 1, 6), first_batches(alone, 1, 6), strict=True):
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array)
