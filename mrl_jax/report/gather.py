"""Any number of runs gathered into a `Study`, checked to be comparable.

Runs that differ only in what cannot change a model (arms, seeds, names, how the population was scheduled) are pooled as
one variant; runs that differ in other keys become variants of their own, so that one arm can be compared between them.
What cannot be compared is refused: other data, another number of steps, another batch size.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrl_jax import config as configuration
from mrl_jax.arms import ARMS, names_of
from mrl_jax.report import labels, validate
from mrl_jax.report.study import Series, Study
from mrl_jax.report.validate import Run
from mrl_jax.system.errors import UserError

REFITTED = "Against arms compressed after training, nested arms are read by a refitted classifier too (refit_top1)."
NOT_REFITTED = "Compressed arms have refitted classifiers, nested arms their own: there is no refit_top1."
MAX_NOTED = 6  # members or metrics that a note lists

# Keys that do not make another variant: they leave every model as it is, or are checked on their own (the steps).
SAME_VARIANT = {
    "name", "arms", "seeds", "run", "resume", "results_dir",
    "trainer.population", "trainer.arms_at_once", "trainer.checkpoint_seconds", "trainer.log_every",
    "trainer.steps", "trainer.epochs",
    "evaluation.interpolated", "evaluation.dims", "evaluation.neighbours", "evaluation.quantised",
    "evaluation.quantised_search", "evaluation.batch_size", "evaluation.cascade", "evaluation.few_shot",
    "evaluation.by_frequency", "evaluation.corruption",
}  # fmt: skip


def gather(paths: Sequence[Path]) -> Study:
    """The study of the runs at `paths`, each a run or a folder with runs below it.

    Raises:
        UserError: no run there, or none with results; two runs that cannot be compared; a damaged file.
    """
    notes: list[str] = []
    every = [validate.load_run(directory) for directory in validate.run_directories(paths)]
    used = sorted((run for run in every if run.rows), key=lambda run: run.started)
    if not used:
        raise UserError(
            f"{every[0].directory} has nothing to report yet: evaluation.csv is missing or empty"
            + ("" if len(every) == 1 else f", and so in the {len(every) - 1} other runs")
        )
    for run in used[1:]:
        validate.check_comparable(used[0], run)
    names = labels.run_names([run.directory for run in every])
    for run in every:
        if missing := run.missing():
            again = "evaluate once more" if run.zero_shot else "resume=true continues it"
            notes.append(f"{names[run.directory]} was cut short: no results of {_first_few(missing)}; {again}.")
    chosen: dict[tuple[str | None, str], Run] = {}  # variant and member → the run that it is taken from
    for variant, pooled in _variants(used, names).items():
        for run in pooled:  # oldest first
            twice = [label for label in run.members if (variant, label) in chosen]
            if twice:
                older = chosen[variant, twice[0]]
                notes.append(
                    f"{', '.join(twice[:MAX_NOTED])}{' …' if len(twice) > MAX_NOTED else ''}: in "
                    f"{names[older.directory]} and in {names[run.directory]}, which is newer and is used."
                )
            chosen |= {(variant, label): run for label in run.members}
    return _assemble(used, chosen, names, notes)


def _assemble(
    used: Sequence[Run],
    chosen: Mapping[tuple[str | None, str], Run],
    names: Mapping[Path, str],
    notes: list[str],
) -> Study:
    """The arrays of the study, from the member → run choice."""
    rows = [(variant, row) for (variant, label), run in chosen.items() for row in run.members[label]]
    present = {Series(row.arm, variant) for variant, row in rows}
    variants, order = list(dict.fromkeys(variant for variant, _ in chosen)), list(ARMS)
    series = tuple(sorted(present, key=lambda s: (variants.index(s.variant), order.index(s.arm))))
    by_seed: dict[tuple[Series, str, str, int], dict[int, float]] = defaultdict(dict)
    for variant, row in rows:
        by_seed[Series(row.arm, variant), row.metric, row.split, row.dim][row.seed] = row.value
    dims = tuple(sorted({dim for run in used for dim in run.config.nesting_dims}))
    seeds = _shared_seeds(series, by_seed, dims, notes)
    complete = {key for key, of in by_seed.items() if all(seed in of for seed in seeds)}
    partial = dict.fromkeys(f"{metric} of {s.label}" for s, metric, _, _ in by_seed.keys() - complete)
    if partial:
        notes.append(f"Not measured for every seed, and left out there: {_first_few(sorted(partial))}.")
    values = {key: np.array([of[seed] for seed in seeds]) for key, of in by_seed.items() if key in complete}
    files = _prediction_files(series, chosen, seeds, notes)
    notes += _absent_arms(series)
    classes = any(metric == "linear_top1" for _, metric, _, _ in values)
    if classes and {"compressed", "nested"} <= {s.origin for s in series}:
        refitted = any(s.origin == "nested" and metric == "refit_top1" for s, metric, _, _ in values)
        notes.append(REFITTED if refitted else NOT_REFITTED)
    if len(seeds) == 1:
        notes.append("One seed: differences have no interval.")
    path = next((paths[0] for of in files.values() for paths in of.values()), None)
    dataset, experiments = used[0].dataset, list(dict.fromkeys(run.config.name for run in used))
    members = {(variant, label) for variant, label in chosen if int(label.rpartition("-seed")[2]) in seeds}
    log = _log(chosen, members, names, notes)
    return Study(
        name=", ".join(experiments),
        title=f"{', '.join(experiments)}: nested embeddings"
        + (" against fixed-size models" if any(s.origin == "fixed" for s in series) else ""),
        series=series,
        dims=dims,
        width=max(run.config.width for run in used),
        classes=tuple(map(str, dataset["classes"])),
        labels=np.zeros(0, np.int32) if path is None else validate.labels_of(path, len(dataset["classes"])),
        seeds=len(seeds),
        notes=tuple(dict.fromkeys(notes)),
        log=log,
        environment=[{"run": names[run.directory], **run.environment} for run in used],
        tuned={
            (Series(entry.arm, variant), entry.width): entry
            for (variant, _), run in chosen.items()
            for entry in run.tuned
            if Series(entry.arm, variant) in present
        },
        _values=values,
        _files=files,
    )


def _first_few(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NOTED]) + (f" and {len(names) - MAX_NOTED} more" if len(names) > MAX_NOTED else "")


def _prediction_files(
    series: Iterable[Series], chosen: Mapping[tuple[str | None, str], Run], seeds: Sequence[int], notes: list[str]
) -> dict[Series, dict[int | None, list[Path]]]:
    """Series → width of a fixed-size model, None for others → one file per seed; without those that a seed lacks."""
    files: dict[Series, dict[int | None, list[Path]]] = {}
    lost: list[Path] = []
    for s in series:
        files[s] = {}
        runs_of = {run for (variant, _), run in chosen.items() if variant == s.variant}
        widths = sorted({row.dim for run in runs_of for row in run.rows if row.arm == s.arm})
        for width in widths if s.origin == "fixed" else [None]:
            labels = [f"{s.arm}{width or ''}-seed{seed}" for seed in seeds]
            if not all((s.variant, label) in chosen for label in labels):
                continue
            paths = [chosen[s.variant, label].directory / "predictions" / f"{label}.npz" for label in labels]
            absent = [path for path in paths if not path.is_file()]
            lost += absent
            if not absent:
                files[s][width] = paths
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        name = f"{lost[0].parent.parent.name}/predictions/{lost[0].name}"
        notes.append(f"predictions are missing ({name}{more}): what needs them is left out.")
    return files


def _absent_arms(series: Sequence[Series]) -> list[str]:
    """What is not shown because an arm was not trained: said once where that goes for all variants."""
    nested = names_of("nested")
    baselines = [name for name in names_of("fixed", "compressed") if ARMS[name].baseline]
    by_variant = {v: {s.arm for s in series if s.variant == v} for v in dict.fromkeys(s.variant for s in series)}
    lacking = {v: [arm for arm in baselines if arm not in present] for v, present in by_variant.items()}
    notes = []
    for variant, present in by_variant.items():
        everywhere = all(arms == lacking[variant] for arms in lacking.values())
        where = "" if variant is None or everywhere else f" in {variant}"
        if not present & set(nested):
            notes.append(f"No nested arm ({', '.join(nested)}){where}: there is nothing to compare.")
            continue
        compared = [ARMS[arm].label for arm in nested if arm in present]
        for arm in lacking[variant]:
            lost = ", ".join(f"{label} − {ARMS[arm].label}" for label in compared)
            notes.append(f"No {arm} arm{where}: {lost} {'is' if len(compared) == 1 else 'are'} not shown.")
    return list(dict.fromkeys(notes))


def _shared_seeds(
    series: Iterable[Series],
    by_seed: Mapping[tuple[Series, str, str, int], Mapping[int, float]],
    dims: Sequence[int],
    notes: list[str],
) -> list[int]:
    """The seeds that all series have, so that every comparison is paired. A series has a seed that lacks none of the
    dims that its most complete seed has at all, by any metric."""
    seeds_of: dict[Series, set[int]] = {}
    for s in series:
        dims_of = defaultdict(set)  # seed → dims
        for (of, _, split, dim), value in by_seed.items():
            if of == s and split == "test" and dim in dims:
                for seed in value:
                    dims_of[seed].add(dim)
        most = max((len(measured) for measured in dims_of.values()), default=0)
        seeds_of[s] = {seed for seed, measured in dims_of.items() if len(measured) == most}
    shared = sorted(set.intersection(*seeds_of.values()))
    if not shared:
        listed = "; ".join(f"{s.label}: {', '.join(map(str, sorted(of)))}" for s, of in seeds_of.items())
        raise UserError(f"the arms share no seed, so that they cannot be compared: {listed}")
    dropped = sorted(set.union(*seeds_of.values()) - set(shared))
    if dropped:
        notes.append(
            f"Comparisons are paired by seed: only what all arms have is used, {_seeds(shared)}; "
            f"{_seeds(dropped)} of some arms left out."
        )
    return shared


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _variants(used: Sequence[Run], names: Mapping[Path, str]) -> dict[str | None, list[Run]]:
    """The runs by variant, named after the oldest run of each; None where there is only one variant."""
    groups: list[list[Run]] = []
    for run in used:
        for group in groups:
            changed = configuration.differences(group[0].config, run.config)
            if {line.partition("=")[0] for line in changed} <= SAME_VARIANT:
                group.append(run)
                break
        else:
            groups.append([run])
    if len(groups) == 1:
        return {None: groups[0]}
    return dict(zip(labels.short([names[group[0].directory] for group in groups]), groups, strict=True))


def _log(
    chosen: Mapping[tuple[str | None, str], Run],
    members: set[tuple[str | None, str]],
    names: Mapping[Path, str],
    notes: list[str],
) -> list[dict[str, Any]]:
    """The lines of `members`, run by run."""
    lines = []
    for variant, run in dict.fromkeys((variant, run) for (variant, _), run in chosen.items()):
        good, damaged = validate.log_lines(run.directory)
        taken = {label for place, label in members if place == variant and chosen[place, label] is run}
        lines += [{**line, "variant": variant} for line in good if line["member"] in taken]
        if damaged:
            notes.append(f"{names[run.directory]}: {damaged} damaged lines of metrics.jsonl are left out.")
    return lines
