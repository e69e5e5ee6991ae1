"""What the command prints about a model."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mrl_jax.arms import ARMS
from mrl_jax.zero_shot import prediction, retention
from mrl_jax.zero_shot.collections import Collection
from mrl_jax.zero_shot.models import Candidate
from mrl_jax.zero_shot.scores import Evaluation

TITLES = {
    "ndcg@10": "nDCG@10",
    "spearman": "Spearman's correlation",
    "knn_top1": "nearest neighbour's accuracy",
    "overlap@10": "overlap@10 with the full width",
}
STORED = {"": "", "int8_": ", 8 bits", "bit_": ", 1 bit"}  # by what the names of their metrics begin with


def scores(candidate: Candidate, on: Sequence[Collection], evaluations: Mapping[str, Evaluation]) -> str:
    """Arms and dims by collections, each by its metric."""
    cells: dict[tuple[str, int], dict[str, float]] = {}
    for collection in on:
        for row in evaluations[collection.name].rows:
            stored = row.metric.removesuffix(collection.metric)
            if stored in STORED and row.metric.endswith(collection.metric):
                label = ARMS[row.arm].label + STORED[stored]
                cells.setdefault((label, row.dim), {})[collection.name] = row.value
    names = [collection.name for collection in on]
    order = list(dict.fromkeys(label for label, _ in cells))
    first = max(map(len, order), default=0)
    widths = [max(8, len(name)) for name in names]
    metrics = ", ".join(dict.fromkeys(TITLES[collection.metric] for collection in on))
    lines = [f"{candidate.given}: {metrics}"]
    lines.append(f"{'':{first}}  {'dim':>5}  " + "  ".join(map(str.rjust, names, widths)))
    for label, dim in sorted(cells, key=lambda cell: (order.index(cell[0]), -cell[1])):
        values = [cells[label, dim].get(name) for name in names]
        shown = [
            ("–" if value is None else f"{value:.4f}").rjust(size) for value, size in zip(values, widths, strict=True)
        ]
        place = "–" if label == ARMS["bm25"].label else str(dim)
        lines.append(f"{label:{first}}  {place:>5}  " + "  ".join(shown))
    return "\n".join(lines)


def smallest(candidate: Candidate, dims: Mapping[str, Sequence[retention.Smallest]], what: str) -> str:
    """How many dims keep how much of what the full width has."""
    lines = [f"\n{candidate.given}: the smallest of these dims that keeps a share of {what}"]
    for name, each in dims.items():
        shares = [f"{one.share:.0%}: {one.dim} [{one.low}, {one.high}]" for one in each]
        lines.append(f"  {name}  " + "   ".join(shares or ["the full width scores nothing"]))
    return "\n".join(lines)


def unseen(count: int, shares: Sequence[retention.Expected]) -> str:
    """What to expect of a collection that was not measured."""
    lines = [f"share kept, mean of {count} collections [its interval] (that of one more collection)"]
    lines += [
        f"  {e.dim:>5}  {e.share:.1%} [{e.low:.1%}, {e.high:.1%}] ({e.new_low:.1%}, {e.new_high:.1%})"
        for e in reversed(shares)
    ]
    return "\n".join(lines) + "\n" if shares else ""


class AgreementRow(NamedTuple):
    """What an arm at a dim has in common with the full width."""

    arm: str
    stored: str  # as in STORED
    dim: int
    overlap: retention.Mean
    rbo: retention.Mean
    ndcg_share: prediction.Share | None  # of nDCG@10, expected; None where that cannot be said


def agreement_rows(candidate: Candidate, collection: Collection, evaluation: Evaluation) -> list[AgreementRow]:
    """The agreement of all arms and ways of storing at every dim."""
    calibration = prediction.load(collection.first.name)
    rows = []
    for (arm, metric), outcomes in evaluation.outcomes.items():
        stored = metric.removesuffix("overlap@10")
        if stored not in STORED or stored == metric:
            continue
        calibrated = arm == candidate.arms["truncated"] and calibration.is_trusted
        for dim in sorted(outcomes, reverse=True):
            overlap = retention.mean_of(outcomes[dim])
            rbo = retention.mean_of(evaluation.outcomes[arm, f"{stored}rbo"][dim])
            expected = calibration.expect(min(1.0, overlap.value)) if calibrated else None
            rows.append(AgreementRow(arm, stored, dim, overlap, rbo, expected))
    return rows


def agreement(candidate: Candidate, collection: Collection, rows: Sequence[AgreementRow]) -> str:
    """Agreement, and what it lets expect of nDCG@10."""
    calibration = prediction.load(collection.first.name)
    queries = "queries" if collection.first.name == "queries" else "documents as queries"
    count = f"{len(collection.first.texts):,} {queries}"
    labels = [ARMS[row.arm].label + STORED[row.stored] for row in rows]
    first = max(map(len, labels))
    lines = [
        f"{candidate.given} on {collection.name}: agreement with the ranking by all {candidate.width} dims in float32, "
        f"mean over {count} [its interval]",
        f"{'':{first}}  {'dim':>5}  {'overlap@10':21}  {'RBO':21}  nDCG@10 kept, expected (another collection)",
    ]
    for label, row in zip(labels, rows, strict=True):
        cells = [f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in (row.overlap, row.rbo)]
        share = "" if (one := row.ndcg_share) is None else f"{one.share:.1%} ({one.low:.1%}, {one.high:.1%})"
        lines.append(f"{label:{first}}  {row.dim:>5}  {cells[0]:21}  {cells[1]:21}  {share}".rstrip())
    by_name = calibration.coverage
    worst = min(by_name, key=lambda name: by_name[name])
    names, mean = ", ".join(by_name), sum(by_name.values()) / len(by_name)
    why = [
        f"judged collections ({names}). Each was left out in turn: the intervals from the",
        f"others held {mean:.0%} of the measured shares, at worst {by_name[worst]:.0%} (of {worst}).",
    ]
    if not calibration.is_trusted:
        return "\n".join([*lines, "", f"How much of nDCG@10 that keeps cannot be said from {why[0]}", why[1]])
    lines += ["", f"What is expected of nDCG@10 comes from {why[0]}", f"{why[1]} The smallest dim with a share:"]
    for stored, label in STORED.items():
        shares = {row.dim: row.ndcg_share for row in rows if row.ndcg_share is not None and row.stored == stored}
        cells = []
        for least in retention.SHARES:
            dim, low, high = ("–" if one is None else one for one in prediction.smallest(shares, least))
            cells.append(f"{least:.0%}: {dim} ({low}, {high})")
        lines.append(f"  {label.removeprefix(', ') or 'float32':7}  " + "   ".join(cells))
    return "\n".join(lines)


AGREEMENT_COLUMNS = (
    "arm", "stored", "dim",
    *(f"{name}{end}" for name in ("overlap@10", "rbo", "ndcg@10_kept") for end in ("", "_low", "_high")),
)  # fmt: skip


def flatten(row: AgreementRow) -> tuple[object, ...]:
    """The row in `AGREEMENT_COLUMNS`; empty where nothing is expected of nDCG@10."""
    numbers = [f"{value:.6f}" for interval in (row.overlap, row.rbo, row.ndcg_share or ()) for value in interval]
    stored = STORED[row.stored].removeprefix(", ") or "float32"
    return (row.arm, stored, row.dim, *numbers, *[""] * (9 - len(numbers)))
