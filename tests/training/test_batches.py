"""Which examples make up a step: every example once an epoch, and the same ones whenever the step is asked for."""

import itertools
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrl_jax.training import batches
from mrl_jax.training.batches import Examples, PairExamples

sizes = st.integers(1, 60)
seeds = st.integers(0, 2**31)


def plain(count: int) -> Examples:
    return Examples({"features": np.arange(count, dtype=np.float32)[:, None]}, np.arange(count, dtype=np.int32))


def texts(lengths: list[int], longest: int | None = None) -> Examples:
    """Texts of the given lengths; the tokens of text i are all i + 1."""
    mask = (np.arange(longest or max(lengths)) < np.array(lengths)[:, None]).astype(np.int8)
    ids = mask * np.arange(1, len(lengths) + 1, dtype=np.int32)[:, None]
    return Examples({"ids": ids, "mask": mask}, np.arange(len(lengths), dtype=np.int32))


def rows(examples: Examples, seed: int, batch_size: int, start: int, stop: int) -> list[list[int]]:
    return [step.tolist() for step in batches.stream(examples, seed, batch_size, start, stop)]


@given(sizes, seeds, st.integers(0, 5), st.integers(1, 80))
def test_every_epoch_is_a_permutation(count, seed, epoch, batch_size):
    assert sorted(batches.order(plain(count), seed, epoch, batch_size)) == list(range(count))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), seeds, st.integers(1, 80))
def test_grouping_texts_by_length_leaves_none_out(lengths, seed, batch_size):
    assert sorted(batches.order(texts(lengths), seed, 0, batch_size)) == list(range(len(lengths)))


def test_grouping_spares_padding_and_keeps_batches_in_random_order():
    lengths = np.random.default_rng(0).permutation(np.arange(1, 401)).tolist()
    order = batches.order(texts(lengths), seed=0, epoch=0, batch_size=20)
    longest = np.array(lengths)[order].reshape(-1, 20).max(1)
    assert sorted(longest) == list(range(20, 401, 20))  # each batch holds 20 neighbouring lengths
    assert longest.tolist() != sorted(longest)


def test_epochs_and_seeds_differ():
    orders = [tuple(batches.order(plain(50), seed, epoch, 10)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


@given(sizes, st.integers(1, 80), seeds, st.integers(1, 6))
def test_the_stream_runs_through_every_epoch_without_gap_or_repeat(count, batch_size, seed, epochs):
    """Batches span epochs, also several of them when a batch is larger than the data set."""
    steps = -(-count * epochs // batch_size)
    read = list(itertools.chain(*rows(plain(count), seed, batch_size, 0, steps)))
    assert len(read) == steps * batch_size
    for epoch in range(epochs):
        assert sorted(read[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 80), seeds, st.integers(0, 12))
def test_a_resumed_stream_reads_what_it_would_have_read(lengths, batch_size, seed, start):
    """The rows of a step are a function of (seed, step), wherever the stream began."""
    examples = texts(lengths)
    assert rows(examples, seed, batch_size, start, 13) == rows(examples, seed, batch_size, 0, 13)[start:]


@settings(deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=20), st.data())
def test_padding_is_trimmed_but_never_a_token(lengths, data):
    examples = texts(lengths, longest=max(lengths) + data.draw(st.integers(0, 50)))
    chosen = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8)))
    batch = examples.take(chosen)
    width = batch["ids"].shape[1]
    assert batch["mask"].shape == (len(chosen), width)
    np.testing.assert_array_equal(batch["mask"].sum(1), np.array(lengths)[chosen])
    np.testing.assert_array_equal(batch["ids"].max(1), chosen + 1)
    np.testing.assert_array_equal(batch["label"], chosen)
    longest = max(lengths[i] for i in chosen)
    assert width in batches.PADDED_LENGTHS or width == examples.inputs["ids"].shape[1]
    assert not any(longest <= n < width for n in batches.PADDED_LENGTHS)  # no shorter padding would have done


def test_an_accelerator_compiles_for_fewer_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    read = texts([3, 20, 70, 150])
    words = Examples({"ids": read.inputs["ids"], "weights": read.inputs["mask"].astype(np.float32)}, read.labels)
    for rows, length in (([0], 64), ([0, 1], 64), ([2], 128), ([3, 0], 150)):
        assert read.padded_length(np.array(rows)) == length
        assert words.padded_length(np.array(rows)) == 150


def test_a_text_without_a_single_known_word_is_padding_only():
    weights = np.array([[0.0, 0.0], [0.5, 0.5]], np.float32)
    batch = Examples({"ids": np.ones((2, 2), np.int32), "weights": weights}, np.zeros(2, np.int32)).take(np.array([0]))
    assert batch["weights"].shape == (1, 2)
    assert not batch["weights"].any()


def test_inputs_without_padding_are_taken_whole():
    batch = plain(5).take(np.array([3, 1, 3]))
    np.testing.assert_array_equal(batch["features"], [[3], [1], [3]])
    np.testing.assert_array_equal(batch["label"], [3, 1, 3])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 80), st.booleans())
def test_slices_cover_each_example_exactly_once(lengths, batch_size, as_texts):
    examples = texts(lengths) if as_texts else plain(len(lengths))
    seen = []
    for part, batch, valid in batches.slices(examples, batch_size):
        assert len(batch["label"]) == len(valid) == batch_size
        np.testing.assert_array_equal(batch["label"][valid], part)
        assert set(batch["label"][~valid]) <= set(part)
        seen += part.tolist()
    assert sorted(seen) == list(range(len(lengths)))


def test_prefetching_keeps_the_order():
    def slower_at_first(item: int) -> int:
        time.sleep(0.002 * (5 - item))
        return item * 10

    assert list(batches.prefetch(iter(range(5)), slower_at_first)) == [0, 10, 20, 30, 40]
    assert list(batches.prefetch(iter(()), slower_at_first)) == []


def test_prefetching_works_ahead_of_the_consumer_but_not_without_bound():
    made = []
    items = batches.prefetch(iter(range(100)), made.append, ahead=2)
    next(items)
    for _ in range(200):
        if len(made) == 3:
            break
        time.sleep(0.01)
    assert len(made) == 3  # the one that was asked for, and two more
    items.close()
    assert len(made) == 3


def test_an_error_while_making_a_batch_reaches_the_consumer_at_its_place():
    def make(item: int) -> int:
        return 6 // (2 - item)

    items = batches.prefetch(iter(range(5)), make)
    assert [next(items), next(items)] == [3, 6]
    with pytest.raises(ZeroDivisionError):
        next(items)


def test_an_error_in_the_source_reaches_the_consumer():
    def source():
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(batches.prefetch(source(), lambda item: item))


def test_a_consumer_that_stops_early_leaves_no_thread_behind():
    before = threading.active_count()
    items = batches.prefetch(iter(range(100)), lambda item: item)
    next(items)
    items.close()
    assert threading.active_count() == before


def pairs_of(texts: np.ndarray) -> PairExamples:
    table = Examples({"features": np.zeros((int(texts.max()) + 1, 1), np.float32)}, np.zeros(int(texts.max()) + 1))
    return PairExamples(table, texts.astype(np.int32), None, no_duplicates=True)


@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 12), st.sampled_from([4, 15, 80]), st.integers(2, 3)),
    epochs=st.integers(1, 4),
)
@settings(deadline=None)
def test_a_batch_has_a_text_twice_only_where_every_pair_that_is_left_would(
    seed: int, sizes: tuple[int, int, int, int], epochs: int
) -> None:
    """Batches over the ends of epochs too, of which each has every pair once; any batch follows from its number."""
    count, batch_size, texts, columns = sizes
    columns = np.random.default_rng(seed).integers(0, texts, (count, columns))
    pairs, steps = pairs_of(columns), epochs * count // batch_size
    batches_ = list(batches.stream(pairs, seed, batch_size, 0, steps))
    rows = np.concatenate([*batches_, np.zeros(0, int)])
    for epoch in range(len(rows) // count):
        assert sorted(rows[epoch * count : (epoch + 1) * count]) == list(range(count))
    for start in range(steps):
        np.testing.assert_array_equal(
            list(batches.stream(pairs, seed, batch_size, start, min(start + 2, steps))), batches_[start : start + 2]
        )
    if count < batch_size:
        return
    for step in range(steps):
        begin, stop = step * batch_size, (step + 1) * batch_size
        if begin // count != (stop - 1) // count or (begin // count + 1) * count > len(rows):
            continue  # over the end of an epoch, where what comes first is chosen first; or the epoch is cut off
        left = list(rows[stop : (begin // count + 1) * count])
        left = left[: len(left) // batch_size * batch_size]  # without what begins the next such batch
        held: set[int] = set()
        for row in rows[begin:stop]:
            if not held.isdisjoint(columns[row].tolist()):
                assert all(not held.isdisjoint(columns[other].tolist()) for other in left)
                break
            held.update(columns[row].tolist())


def test_five_answers_fill_batches_of_five_without_a_repeat() -> None:
    texts = np.stack([5 + np.arange(100), np.arange(100) % 5], axis=1)
    for batch in batches.stream(pairs_of(texts), 0, 5, 0, 60):
        assert len(set(texts[batch].ravel())) == 10
    answers = [len(set(texts[batch, 1])) for batch in batches.stream(pairs_of(texts), 0, 8, 0, 25)]
    assert answers.count(5) >= 20  # eight pairs of five answers: some stand twice, and no pair is left out


def test_different_texts_are_in_the_order_of_the_permutation() -> None:
    texts = np.arange(60).reshape(30, 2)
    for epoch, batch_size in ((0, 10), (1, 7), (2, 40)):
        expected = batches.order(plain(30), 3, epoch, batch_size)
        np.testing.assert_array_equal(batches.order(pairs_of(texts), 3, epoch, batch_size), expected)
