"""Tables of the atlas: accuracy of every arm on every set, and the nested arm that is best on validation against FF.

    python experiments/atlas/analyse.py results/reference/atlas/bag results/reference/atlas/minilm
    python experiments/atlas/analyse.py --repeats sets

Each folder holds a folder for each set: the files of its run, and of its report. `--repeats` reads a folder that
`benchmarks/own_data.py --write` has written, and counts test texts with the words of a training text in the same order,
and those that are nearly one, by a cosine of at least 0.9 between tf-idf vectors of runs of three to five characters.
"""

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from mrl_jax import arms
from mrl_jax.data import cuts
from mrl_jax.report import cells

METRIC, REFITTED = "linear_top1", "refit_top1"  # the arm's own classifier, and one that is fitted on its embeddings
DIMS = (8, 32, 128)  # of the table of accuracies: ratios 16, 4 and 1
NEAR = 0.9
Means = dict[tuple[str, int, str], float]  # of seeds, by arm, dim and split


def means(folder: Path, metric: str) -> Means:
    """The accuracies of a run."""
    seeds = defaultdict(list)
    for row in rows(folder / "evaluation.csv"):
        if row["metric"] == metric:
            seeds[row["arm"], int(row["dim"]), row["split"]].append(float(row["value"]))
    return {key: float(np.mean(values)) for key, values in seeds.items()}


def rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def best_nested(of: Means) -> str:
    """The nested arm with the best mean over the dims on validation."""
    scores, dims = defaultdict(list), {dim for arm, dim, _ in of if arm == "ff"}
    for (arm, dim, split), value in of.items():
        if split == "validation" and arm in arms.NESTED and dim in dims:
            scores[arm].append(value)
    return max(scores, key=lambda arm: np.mean(scores[arm]))


def accuracies(sets: Mapping[str, Means]) -> list[str]:
    """The table of test accuracies in percent: a row for each set and dim, a column for each arm."""
    names = [arm for arm in arms.NAMES if any(arm == key[0] for of in sets.values() for key in of)]
    lines = [
        f"| set | dims | {' | '.join(arms.ARMS[arm].label for arm in names)} |",
        f"|---|---:{'|---:' * len(names)}|",
    ]
    for name, of in sets.items():
        for dim in DIMS:
            found = [of.get((arm, dim, "test")) for arm in names]
            lines.append(f"| {name} | {dim} | {' | '.join('' if x is None else f'{100 * x:.1f}' for x in found)} |")
    return lines


def against_fixed(folders: Mapping[str, Path], sets: Mapping[str, Means]) -> list[str]:
    """The table of the nested arm that is best on validation against FF, in points; bold where it is settled over the
    dims of the set (Holm); then on how many sets it is behind at no dim."""
    dims = sorted({dim for of in sets.values() for arm, dim, _ in of if arm == "ff"})
    lines = [f"| set | best nested arm | {' | '.join(map(str, dims))} |", f"|---|---{'|---:' * len(dims)}|"]
    behind = []
    for name, folder in folders.items():
        label = arms.ARMS[best_nested(sets[name])].label
        of_dim = {
            int(row["dim"]): row
            for row in rows(folder / "differences.csv")
            if (row["metric"], row["a"], row["b"]) == (METRIC, label, arms.ARMS["ff"].label)
        }
        shown = []
        for dim in dims:
            mean, settled = float(of_dim[dim]["mean"]), float(of_dim[dim]["p_holm"]) < 0.05
            shown.append(f"**{cells.signed(mean)}**" if settled else cells.signed(mean))
        behind += [name] if any("**−" in cell for cell in shown) else []
        lines.append(f"| {name} | {label} | {' | '.join(shown)} |")
    free = f"{len(folders) - len(behind)} of {len(folders)}"
    return [
        *lines,
        "",
        f"Behind FF at no dim by a settled difference: {free} sets (behind: {', '.join(behind) or 'none'}).",
    ]


def chosen(folders: Mapping[str, Path]) -> list[str]:
    """How many of the sets' choices are the configured settings, and what choosing gained, by arm and dim."""
    of_arm: dict[str, list[dict]] = defaultdict(list)
    for folder in folders.values():
        for arm in json.loads((folder / "tuned.json").read_text(encoding="utf-8")).values():
            of_arm[arms.ARMS[arm["arm"]].label + (f" {arm['width']}" if arm["width"] else "")].append(arm)
    lines = ["| arm | configured | gain on validation | learning rate, least to most |", "|---|---:|---:|---|"]
    for label, found in of_arm.items():
        same = sum(arm["trial"] == 0 for arm in found)
        gain = float(np.mean([arm["validation"] - arm["configured"] for arm in found]))
        rates = [arm["settings"]["optimizer.learning_rate"] for arm in found]
        lines.append(
            f"| {label} | {same} of {len(found)} | {cells.signed(gain)} | {min(rates):.2g} to {max(rates):.2g} |"
        )
    return lines


def repeated(folder: Path) -> list[str]:
    """The table of what stands in train and test alike."""
    lines = ["| set | train | test | classes | the same | nearly the same |", "|---|---:|---:|---:|---:|---:|"]
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        train, test = (
            [json.loads(line) for line in (place / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]
            for part in ("train", "test")
        )
        texts = [[row["text"] for row in part] for part in (train, test)]
        known = set(cuts.keys(texts[0]))
        same = sum(key in known for key in cuts.keys(texts[1]))
        words = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, dtype=np.float32)
        of_train = words.fit_transform(texts[0]).T.tocsc()
        of_test = words.transform(texts[1])
        near = sum(
            int(((of_test[start : start + 100] @ of_train).max(axis=1).toarray() >= NEAR).sum())
            for start in range(0, len(test), 100)
        )
        numbers = (len(train), len(test), len({row["label"] for row in train}))
        shares = (f"{100 * count / len(test):.1f} %" for count in (same, near))
        lines.append(f"| {place.name} | {' | '.join([*(f'{n:,}' for n in numbers), *shares])} |")
    return lines


def tables(folder: Path) -> dict[str, list[str]]:
    """All tables of one encoder's runs."""
    folders = {path.name: path for path in sorted(folder.iterdir()) if (path / "evaluation.csv").exists()}
    sets = {name: means(path, METRIC) for name, path in folders.items()}
    refitted = {name: means(path, REFITTED) for name, path in folders.items()}
    for name, of in refitted.items():  # compressed embeddings have no other classifier
        of |= {key: value for key, value in sets[name].items() if key[0] in arms.POSTHOC}
    return {
        "accuracies": accuracies(sets),
        "accuracies, refitted": accuracies(refitted),
        "against FF": against_fixed(folders, sets),
        "chosen settings": chosen(folders),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--repeats", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    for folder in options.folders:
        for what, lines in tables(folder).items():
            print(f"## {folder.name}: {what}\n", *lines, "", sep="\n")
    if options.repeats:
        print(*repeated(options.repeats), sep="\n")


if __name__ == "__main__":
    main()
