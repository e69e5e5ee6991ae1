"""The parts of a report in their order, and those that look at each arm by itself."""

from mrl_jax.report import cells, compare, contrasts, figures
from mrl_jax.report.compare import PRECISIONS, Comparisons
from mrl_jax.report.study import Study
from mrl_jax.report.tables import Section, Table, dash, of_variant, some, title

MAX_CLASSES = 10  # rows of a table of classes


def sections(study: Study, comparisons: Comparisons) -> list[Section]:
    """The report's parts, without those that the study has no numbers for."""
    parts = [
        _accuracy(study),
        *(contrasts.differences(study, metric, of_metric) for metric, of_metric in comparisons.items()),
        contrasts.between_runs(comparisons),
        contrasts.nesting_tax(comparisons),
        contrasts.seeds_needed(study, comparisons),
        _settings(study),
        contrasts.equal_compute(study),
        _own_heads(study),
        _oracle(study),
        _adaptive(study),
        _equal_bytes(study),
        _classes(study),
        _every_metric(study),
    ]
    return [part for part in parts if part.sentences or part.tables or part.figures]


def _accuracy(study: Study) -> Section:
    tables = []
    for metric in study.compared:
        for variant in study.variants:
            shown = {s: study.values(s, metric) for s in study.series if s.variant == variant}
            shown = {s: values for s, values in shown.items() if values}
            rows = [
                [str(dim), *(cells.mean(values.get(dim)) for values in shown.values())]
                for dim in study.dims
                if any(dim in values for values in shown.values())
            ]
            spread = f", mean ± standard deviation of {study.seeds} seeds" if study.seeds > 1 else ""
            name = title(metric)
            if metric == "linear_top1" and any(s.origin == "compressed" for s in shown):
                name += " (refitted where the arm is compressed after training)"
            what = f"Top-1 test accuracy (%) of the {name}" if metric.endswith("top1") else f"Test {name} (× 100)"
            caption = f"{what}{spread}{of_variant(variant)}."
            tables += some(f"accuracy-{metric}{dash(variant)}", caption, ["dim", *(s.name for s in shown)], rows)
    pictures = [figures.accuracy(study)] if tables else []
    if (beyond := figures.generalisation(study)).panels:
        pictures.append(beyond)
    if any(line["split"] == "validation" for line in study.log):
        pictures.append(figures.training(study))
    return Section("Accuracy against dimension", [], tables, pictures)


def _settings(study: Study) -> Section:
    """Which settings each arm was trained with, of those that all arms tried."""
    keys = list(dict.fromkeys(key for tuned in study.tuned.values() for key in tuned.settings))
    rows = [
        [
            series.label if width is None else f"{series.label}, {width} dims",
            "configured" if tuned.trial == 0 else f"{tuned.trial} of {tuned.trials}",
            *(cells.setting(tuned.settings, key) for key in keys),
            cells.percent(tuned.validation),
            cells.NONE if tuned.configured is None else cells.percent(tuned.configured),
            str(tuned.within_standard_error),
        ]
        for (series, width), tuned in study.tuned.items()
    ]
    sentence = (
        "Every arm tried the same settings, and was trained with the one that is best on validation. The score of a "
        "chosen setting is optimistic, being the largest of many; the test split was not read."
    )
    header = ["", "trial", *keys, "validation (%)", "as configured (%)", "within a standard error"]
    caption = "Chosen settings, their validation score, that of the configured ones, and how many settings are as good."
    tables = some("settings", caption, header, rows)
    pictures = [figure] if rows and (figure := figures.budget(study)).panels else []
    return Section("Settings of each arm", [sentence] if rows else [], tables, pictures)


def _own_heads(study: Study) -> Section:
    """Own head → refitted classifier, for each arm that has both."""
    tables = []
    for variant in study.variants:
        columns = {}
        for series in (s for s in study.series if s.variant == variant and s.main):
            names = ("own_head_top1", "linear_top1") if series.origin == "compressed" else ("linear_top1", "refit_top1")
            own, refitted = (study.values(series, name) for name in names)
            if own and refitted:
                columns[series.name] = own, refitted
        rows = []
        for dim in study.dims if columns else ():
            row = [str(dim)]
            for own, refitted in columns.values():
                a, b = own.get(dim), refitted.get(dim)
                if a is None or b is None:
                    row.append(cells.NONE)
                else:
                    row.append(f"{cells.percent(a)} → {cells.percent(b)} ({cells.signed(b - a)})")
            rows.append(row)
        caption = f"Test accuracy (%): own head → classifier refitted on the embedding (the gap){of_variant(variant)}."
        tables += some(f"heads{dash(variant)}", caption, ["dim", *columns], rows)
    sentence = (
        "Published comparisons often read a truncated or projected embedding with the full model's own head; refitting "
        "a classifier on the compressed embedding is the fair baseline. The gap is what the unfair comparison hides."
    )
    return Section("Own head and refitted classifier", [sentence] if tables else [], tables)


def _oracle(study: Study) -> Section:
    oracles = {s: one for s in study.of_origin("nested") if (one := compare.oracle(study, s))}
    rows = [
        [
            series.label, cells.percent(one.full), cells.percent(one.accuracy),
            f"{100 * (one.accuracy - one.full):+.2f}", f"{one.mean_dims:.1f} of {max(one.shares)}",
        ]
        for series, one in oracles.items()
    ]  # fmt: skip
    sentence = (
        "An oracle reads each example at the smallest dim that is right about it (at the smallest dim if none is): "
        "no way to choose among these dims can be more accurate."
    )
    caption = "Top-1 test accuracy (%) at full width and by the oracle, and the dims that it reads on average."
    tables = some("oracle", caption, ["arm", "full width", "oracle", "gain", "mean dims"], rows)
    pictures = [figures.oracle(study, oracles)] if oracles else []
    return Section("An oracle that picks the dimension", [sentence] if rows else [], tables, pictures)


def _adaptive(study: Study) -> Section:
    """What cascades over each nested arm's own classifiers give."""
    rows = [
        [
            f"{series.label}, {one.rule}", cells.percent(one.accuracy), cells.interval(one.lost, 100, "+.2f"),
            f"{cells.interval(one.dims, 1, '.1f')} of {one.full}", f"{one.cumulative_dims:.1f}",
            f"{one.kflop:.2f}", cells.percent(one.captured, 0),
            cells.NONE if one.certified is None else f"{one.certified} of {study.seeds}",
        ]
        for series in study.series
        for one in compare.adaptive(study, series)
    ]  # fmt: skip
    sentence = (
        "An input leaves at the first dim whose classifier is sure enough. The greedy rule of the paper promises "
        "nothing; certified thresholds lose more than evaluation.epsilon of the accuracy at full width with "
        "probability at most evaluation.delta, and read everything where that cannot be shown. Dims are those of the "
        "classifier that answered; cumulative dims add those asked before it, which a tied head does not read again."
    )
    caption = (
        "Cascades on the test split: top-1 accuracy (%), points lost against full width [95 % interval], dims "
        "[95 % interval], thousand floating-point operations of the heads per input, dims saved as a share (%) "
        "of those that the oracle saves, and seeds with a certificate."
    )
    header = ["cascade", "top-1", "lost", "mean dims", "cumulative", "kFLOP", "of oracle", "certified"]
    pictures = [figures.cascade(study)] if rows else []
    return Section(
        "Adaptive classification", [sentence] if rows else [], some("cascade", caption, header, rows), pictures
    )


def _equal_bytes(study: Study) -> Section:
    rows = [
        [
            s.label, f"{size:g}",
            *(f"{cells.percent(at[k][1])} ({at[k][0]})" if k in at else cells.NONE for k in PRECISIONS),
        ]
        for s in study.series
        if s.main
        for size, at in compare.equal_bytes(study, s)
    ]  # fmt: skip
    sentence = (
        "The same bytes hold few precise coordinates or many coarse ones: 64 float32 numbers take as much as 256 int8 "
        "or 2048 single bits."
    )
    caption = "Nearest-neighbour top-1 accuracy (%) by bytes per embedding; in brackets the dims that they hold."
    tables = some("bytes", caption, ["arm", "bytes", *PRECISIONS], rows)
    figure = figures.by_bytes(study)
    pictures = [figure] if figure.panels else []
    return Section("Few precise or many coarse coordinates", [sentence] if rows else [], tables, pictures)


def _classes(study: Study) -> Section:
    tables, pictures = [], []
    for series in study.of_origin("nested"):
        needs = compare.class_needs(study, series)
        if not needs:
            continue
        rows = [
            [c.name, str(c.examples), *(cells.percent(v, 1) for v in c.accuracy.values()), str(c.enough)]
            for c in needs[:MAX_CLASSES]
        ]
        caption = (
            f"{series.label}: test accuracy (%) of the {len(rows)} classes (of {len(needs)}) that need most dims; "
            "enough: the dim from which on a class stays within a point of its accuracy at full width."
        )
        header = ["class", "examples", *map(str, needs[0].accuracy), "enough"]
        tables.append(Table(f"classes-{series.key}", caption, header, rows))
        pictures.append(figures.classes(needs, series))
    return Section("Classes that need more dimensions", [], tables, pictures)


def _every_metric(study: Study) -> Section:
    """All that evaluation.csv has of the test split, so that nothing in it is seen nowhere."""
    tables = []
    for series in study.series:
        values = {metric: study.values(series, metric) for metric in study.metrics}
        dims = sorted({dim for by_dim in values.values() for dim in by_dim})
        dims = dims[-1:] if series.origin == "classical" else dims  # the same at all of them
        rows = [
            [metric, *(f"{by_dim[dim].mean():.4f}" if dim in by_dim else cells.NONE for dim in dims)]
            for metric, by_dim in values.items()
            if by_dim
        ]
        heads = ["every dim"] if series.origin == "classical" else map(str, dims)
        tables += some(f"metrics-{series.key}", f"{series.label}.", ["metric", *heads], rows)
    sentence = (
        "Every metric of the test split at every dim, mean over seeds; evaluation.csv has each seed, and the "
        "validation split."
    )
    return Section("Every metric", [sentence] if tables else [], tables)
