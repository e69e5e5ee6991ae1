"""Hard negatives for pairs: documents that a model ranks high for an anchor and that no row pairs with it.

By the rules of `mine_hard_negatives` of sentence-transformers, and of NV-Retriever (Moreira et al., 2024,
arXiv:2407.15831) for the margins. For each distinct anchor:

    1. take the `stop` nearest documents by cosine that are no known positives and not its own text (`data.relevance`)
    2. drop those with a score above s − margin, or above s − relative · |s|, for s the least score of its positives
    3. skip the first `start` of the rest, and take `negatives`: the first ones, or some drawn at random

The search is exact. Anchors are searched for in blocks: O(A · N · D) for A anchors and N documents, in memory that
depends on N · D and on A · `negatives`.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from mrl_jax.data import Pairs
from mrl_jax.data.relevance import own_texts, search_of
from mrl_jax.data.sources.pairs import read_file
from mrl_jax.model import pretrained, vectors
from mrl_jax.search import corpus, exact
from mrl_jax.search.layout import lay_out
from mrl_jax.system import console
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import ResumableFile, path_of

BLOCK_ANCHORS = 1024  # anchors that are ranked for together
RANKS_PER_NEGATIVE = 10  # of the default range, as in sentence-transformers


class Rules(NamedTuple):
    """Which documents are hard negatives; see above."""

    negatives: int
    start: int
    stop: int
    margin: float | None = None
    relative_margin: float | None = None
    sampling: Literal["top", "random"] = "top"
    seed: int = 0


class Counts(NamedTuple):
    """What became of the documents that were looked at, over all anchors."""

    known: int = 0  # known positives, which are not counted in ranks
    own: int = 0  # copies of the anchor, which are not counted either
    near: int = 0  # dropped by a margin
    skipped: int = 0  # of the first ranks
    left: int = 0  # to choose from


def choose(
    anchors: np.ndarray, documents: np.ndarray, positives: np.ndarray, own: np.ndarray, rules: Rules
) -> tuple[np.ndarray, Counts]:
    """The hard negatives of each anchor.

    Args:
        anchors: float32 [A, D], of unit length or zero.
        documents: float32 [N, D].
        positives: int [j, 2], row of an anchor and of a document that is relevant to it; each anchor has one or more.
        own: int [m, 2], row of an anchor and of the document that has its text.
        rules: which to choose.

    Returns:
        The rows of the documents, int32 [A, negatives], best first, or −1 throughout where there are too few or the
        anchor is zero, to which all documents are alike; and what became of the others.
    """
    excluded = np.unique(np.concatenate([positives, own]).astype(np.int64) @ np.array([len(documents), 1]))
    known = np.unique(positives.astype(np.int64) @ np.array([len(documents), 1]))
    most = np.bincount(excluded // len(documents), minlength=len(anchors))
    limits = _limits(anchors, documents, positives, rules)
    laid_out = lay_out(documents, (documents.shape[1],))
    chosen, counts = np.full((len(anchors), rules.negatives), -1, np.int32), Counts()
    order = np.argsort(most, kind="stable")  # anchors of many positives have to look further
    order = order[np.asarray(anchors.any(axis=1))[order]]
    with console.progress(len(order), "rank", "anchor") as bar:
        for begin in range(0, len(order), BLOCK_ANCHORS):
            block = order[begin : begin + BLOCK_ANCHORS]
            needed = rules.stop + int(most[block].max())
            k = min(len(documents), 1 << (needed - 1).bit_length())  # few sizes, as each is compiled
            scores, rows = exact.search(laid_out, anchors[block], k)[0]
            keys = block[:, None].astype(np.int64) * len(documents) + rows
            is_known, is_excluded = np.isin(keys, known), np.isin(keys, excluded)
            free = ~is_excluded & (rows >= 0)
            seen = (np.cumsum(free, axis=1) - free < rules.stop) & (rows >= 0)
            near = seen & free & (scores > limits[block, None])
            left = seen & free & ~near
            skipped = left & (np.cumsum(left, axis=1) <= rules.start)
            left &= ~skipped
            for i, anchor in enumerate(block):
                chosen[anchor] = _take(rows[i, left[i]], int(anchor), rules)
            found = (is_known & seen, is_excluded & ~is_known & seen, near, skipped, left)
            counts = Counts(*(total + int(cells.sum()) for total, cells in zip(counts, found, strict=True)))
            bar.update(len(block))
    return chosen, counts


def _limits(anchors: np.ndarray, documents: np.ndarray, positives: np.ndarray, rules: Rules) -> np.ndarray:
    """The score above which no document is a negative of an anchor, float64 [A]."""
    least = np.full(len(anchors), np.inf)
    for part in np.array_split(positives, 1 + len(positives) // BLOCK_ANCHORS):
        products = (documents[part[:, 1]].astype(np.float64) * anchors[part[:, 0]]).sum(axis=1)
        np.minimum.at(least, part[:, 0], products.astype(np.float32))  # rounded as the scores of the search
    limits = np.full(len(anchors), np.inf)
    if rules.margin is not None:
        limits = np.minimum(limits, least - rules.margin)
    if rules.relative_margin is not None:
        limits = np.minimum(limits, least - np.abs(least) * rules.relative_margin)
    return limits


def _take(rows: np.ndarray, anchor: int, rules: Rules) -> np.ndarray | int:
    """`negatives` of the candidates of an anchor, best first; −1 where there are too few."""
    if len(rows) < rules.negatives:
        return -1
    if rules.sampling == "top":
        return rows[: rules.negatives]
    drawn = np.random.default_rng((rules.seed, anchor)).choice(len(rows), rules.negatives, replace=False)
    return rows[np.sort(drawn)]


# ---- the command -----------------------------------------------------------------------------------------------------


def mine(options: argparse.Namespace) -> None:
    """Write the pairs of a file with hard negatives."""
    rules = rules_of(options)
    if not options.out.endswith((".jsonl", ".ndjson")):
        raise UserError(f"--out={options.out} is not allowed; a file ending in .jsonl or .ndjson")
    pairs = read_file("pairs", "PAIRS", options.pairs)
    if pairs.scores is not None:
        raise UserError(
            f"{options.pairs} has scores, which say of no text that it is a negative; give pairs of anchor and positive"
        )
    texts = list(pairs.table)
    task = search_of(pairs.columns)
    anchors, documents = ([texts[row] for row in rows] for rows in (task.queries, task.documents))
    documents += _further(options.corpus, documents)
    if rules.negatives >= len(documents):
        raise UserError(
            f"--negatives={rules.negatives} is not allowed; there are {len(documents):,} documents, and no anchor has "
            "its positive as a negative: give fewer, or --corpus"
        )
    with ResumableFile(path_of("--out", options.out), {}) as out:
        model = pretrained.find(options.run, options.arm, options.seed)
        z, x = (
            vectors.embed(model, side, role, f"{options.run}: {len(side):,} {what}", options.cache_dir)
            for side, role, what in ((anchors, "query", "anchors"), (documents, "document", "documents"))
        )
        own = own_texts(anchors, documents, task.judgments)
        chosen, counts = choose(z, x, task.judgments[:, :2], own, rules)
        anchor_of = np.searchsorted(task.queries, pairs.columns[:, 0])
        kept = int((chosen[anchor_of, 0] >= 0).sum())
        why = _explain(counts, rules, len(anchors))
        if not kept:
            raise UserError(
                f"no anchor of {options.pairs} has {rules.negatives} negatives: {why}; ask for fewer, a wider range "
                "or a smaller margin"
            )
        out.cut(0)
        for line in _lines(pairs, texts, documents, chosen[anchor_of]):
            out.file.write(line.encode())
        out.finish()
    print(f"{options.out}: {kept:,} of {len(pairs):,} pairs, {rules.negatives} negatives each")
    print(why)
    blind = int(np.count_nonzero(~np.asarray(z.any(axis=1))[anchor_of]))
    if blind:
        print(f"{blind:,} pairs are left out: {options.run} knows no word of their anchors")
    if kept + blind < len(pairs):
        few = len(pairs) - kept - blind
        print(f"{few:,} pairs are left out: their anchors have fewer than {rules.negatives} candidates")


def rules_of(options: argparse.Namespace) -> Rules:
    """The rules that the options ask for. Raises `UserError` for those that leave nothing."""
    count = options.negatives
    start, stop = options.range or (0, RANKS_PER_NEGATIVE * count)
    if stop - start < count:
        raise UserError(
            f"--range={start}:{stop} is not allowed; STOP is START + --negatives={count} or more, both ranks from 0"
        )
    for key, value, least, most in (
        ("--margin", options.margin, 0, 2),
        ("--relative-margin", options.relative_margin, 0, 0.5),
    ):
        if value is not None and not least <= value <= most:
            hint = "; 0.05 allows scores up to 95 % of the positive's" if most < 1 else ""
            raise UserError(f"{key}={value:g} is not allowed; {least} to {most:g}{hint}")
    if options.sampling_seed < 0:
        raise UserError(f"--sampling-seed={options.sampling_seed} is not allowed; 0 or more")
    return Rules(count, start, stop, options.margin, options.relative_margin, options.sampling, options.sampling_seed)


def ranks(word: str) -> tuple[int, int]:
    """The type of an argument such as 10:100."""
    start, colon, stop = word.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal()):
        raise argparse.ArgumentTypeError(f"{word} is not allowed; START:STOP, such as 10:100")
    return int(start), int(stop)


def _further(path: str | None, documents: Sequence[str]) -> list[str]:
    """The texts of a corpus that are not among the documents, each once; blank ones are no negatives."""
    if path is None:
        return []
    file = path_of("--corpus", path)
    corpus.file_size(file)
    texts = dict.fromkeys(document.text for _, document in corpus.read_documents(file))
    there = set(documents)
    return [text for text in texts if text.strip() and text not in there]


def _explain(counts: Counts, rules: Rules, anchors: int) -> str:
    """What became of the documents that were looked at."""
    margins = [] if rules.margin is None else [f"{rules.margin:g}"]
    margins += [] if rules.relative_margin is None else [f"{100 * rules.relative_margin:g} %"]
    parts = [
        *([f"{counts.near:,} score less than {' or '.join(margins)} below a positive"] if margins else []),
        *([f"{counts.skipped:,} are the first {rules.start} of the rest"] if rules.start else []),
        f"{counts.left:,} are left",
    ]
    return (
        f"the {rules.stop:,} nearest documents of each of {anchors:,} anchors, without {counts.known:,} known positives"
        f" and {counts.own:,} copies of an anchor: {', '.join(parts)}"
    )


def _lines(pairs: Pairs, texts: Sequence[str], documents: Sequence[str], chosen: np.ndarray) -> Iterator[str]:
    """A line of JSON per pair that has negatives."""
    for (anchor, positive), rows in zip(pairs.columns[:, :2], chosen, strict=True):
        if rows[0] >= 0:
            row = {"anchor": texts[anchor], "positive": texts[positive], "negatives": [documents[i] for i in rows]}
            yield json.dumps(row, ensure_ascii=False) + "\n"
