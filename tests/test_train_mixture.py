"""Training on several sources: whose turn a step is, what each source learns, what is kept, and what is refused."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import WORDS, interrupt_after_two_checkpoints, random_pair, run_digests, write_table
from hypothesis import given
from hypothesis import strategies as st

import mrl_jax
from mrl_jax import config, predict, report, runs, search, train
from mrl_jax.data.mixture import schedule, shares
from mrl_jax.export import model_card
from mrl_jax.search.service.answers import Answers
from mrl_jax.system.errors import UserError
from mrl_jax.training import trainer
from mrl_jax.training.batches import Examples
from mrl_jax.training.mixture import MixedExamples

SHORT = [
    *("width=16", "nesting_dims=[4,16]", "trainer.batch_size=16", "trainer.log_every=4", "trainer.evaluations=2"),
    *(
        "optimizer.learning_rate=0.03",
        "evaluation.neighbours=false",
        "evaluation.refit=null",
        "evaluation.interpolated=false",
    ),
]


def scored_pair(rng: np.random.Generator) -> dict:
    words = list(rng.choice(WORDS, 4, replace=False))
    same = int(rng.integers(0, 5))
    return {
        "sentence1": " ".join(words),
        "sentence2": " ".join(words[:same] + list(rng.choice(WORDS, 4 - same, replace=False))),
        "score": same,
    }


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, Path]) -> dict[str, str]:
    """Sections of data.sources as they are written on the command line: pairs, scored pairs and labelled texts."""
    folder, rng = tmp_path_factory.mktemp("mixture"), np.random.default_rng(0)
    for name, row, count in (("qa", random_pair, 300), ("sim", scored_pair, 150)):
        write_table(folder / f"{name}.jsonl", [row(rng) for _ in range(count)])
        write_table(folder / f"{name}_test.jsonl", [row(rng) for _ in range(40)])
    return {
        "qa": f"source:pairs,train:{folder}/qa.jsonl,test:{folder}/qa_test.jsonl,loss:{{name:info_nce}}",
        "sim": f"source:pairs,train:{folder}/sim.jsonl,test:{folder}/sim_test.jsonl,loss:{{name:cosent}}",
        "topics": f"source:files,train:{texts['train']},test:{texts['test']}",
    }


def mixture(sections: dict[str, str], *names: str) -> list[str]:
    return ["data=mixture", f"data.sources={{{','.join(f'{name}:{{{sections[name]}}}' for name in names)}}}", *SHORT]


@pytest.fixture(scope="module")
def mixed(sections: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on three sources of three kinds."""
    results = tmp_path_factory.mktemp("mixed")
    words = [*mixture(sections, "qa", "sim", "topics"), "arms=[mrl,ff]", "trainer.steps=60"]
    assert train.main([*words, f"results_dir={results}", "run=first"]) == 0
    return results / "mixture" / "first"


# ---- whose turn it is ------------------------------------------------------------------------------------------------

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=6).map(lambda w: np.array(w) / np.sum(w))


@given(WEIGHTS, st.integers(0, 300))
def test_every_source_has_its_share_after_any_number_of_steps(shares_S: np.ndarray, steps: int) -> None:
    done = np.bincount(list(schedule(shares_S, steps)), minlength=len(shares_S))
    assert done.sum() == steps
    assert np.all(np.abs(done - shares_S * steps) <= max(1, len(shares_S) - 1))


@given(WEIGHTS, st.integers(0, 100), st.integers(0, 100))
def test_longer_training_begins_as_a_shorter_one(shares_S: np.ndarray, steps: int, more: int) -> None:
    assert list(schedule(shares_S, steps + more))[:steps] == list(schedule(shares_S, steps))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], [0.9, 0.1]),
        (["data.mixing=uniform"], [0.5, 0.5]),
        (["data.mixing=temperature", "data.mixing_temperature=2"], [0.75, 0.25]),
        (["data.mixing=temperature", "data.mixing_temperature=1"], [0.9, 0.1]),
    ],
)
def test_shares_are_sizes_to_the_power_of_one_over_the_temperature(words: list[str], expected: list[float]) -> None:
    made = config.from_command_line(["data=mixture", "data.sources={a:{source:stsb},b:{source:stsb}}", *words])
    np.testing.assert_allclose(shares(made.data, [900, 100]), expected)


def test_a_weight_is_a_factor_of_a_share() -> None:
    made = config.from_command_line(["data=mixture", "data.sources={a:{source:stsb},b:{source:stsb,weight:3}}"])
    np.testing.assert_allclose(shares(made.data, [100, 100]), [0.25, 0.75])


def examples() -> MixedExamples:
    """Features whose first column says whose row they are, and labels that number them."""

    def part(source: int, count: int) -> Examples:
        return Examples({"features": np.full((count, 1), source, np.float32)}, np.arange(count, dtype=np.int32))

    return MixedExamples({"a": part(0, 7), "b": part(1, 20), "c": part(2, 3)}, np.array([0.25, 0.65, 0.1]))


@given(st.integers(0, 40), st.integers(0, 5))
def test_batches_from_any_step_on_are_those_of_an_undisturbed_run(start: int, seed: int) -> None:
    whole, rest = (list(examples().stream(seed, 4, at, 40)) for at in (0, start))
    np.testing.assert_array_equal(np.array(whole)[start:], np.array(rest).reshape(-1, 4))


def test_a_batch_holds_one_source_and_a_source_is_gone_through_before_it_is_repeated() -> None:
    mixed, seen = examples(), Counter[tuple[str, int]]()
    for rows in mixed.stream(0, 4, 0, 60):
        batch = mixed.take(rows)
        ((name, label),) = batch["label"].items()
        assert set(batch["features"][:, 0]) == {"abc".index(name)}
        seen.update((name, int(number)) for number in label)
    for name, part in mixed.parts.items():
        counts = [seen[name, number] for number in range(len(part))]
        assert max(counts) - min(counts) <= 1, name


def test_all_seeds_train_on_the_same_source_at_a_time_and_on_other_rows_of_it() -> None:
    mixed = examples()
    first, second = (np.array(list(mixed.stream(seed, 4, 0, 30))) for seed in (0, 1))
    assert [next(iter(mixed.take(rows)["label"])) for rows in first] == [
        next(iter(mixed.take(rows)["label"])) for rows in second
    ]
    assert not np.array_equal(first, second)


def test_the_batches_of_members_are_stacked() -> None:
    mixed = examples()
    one, two = np.arange(7, 11), np.arange(12, 16)
    joint = mixed.stack([one, two], None)
    for i, rows in enumerate((one, two)):
        np.testing.assert_array_equal(joint["features"][i], mixed.take(rows)["features"])
        np.testing.assert_array_equal(joint["label"]["b"][i], mixed.take(rows)["label"]["b"])


# ---- what is learnt --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["qa", pytest.param("sim", marks=pytest.mark.slow), pytest.param("topics", marks=pytest.mark.slow)]
)
def test_a_mixture_of_one_source_is_that_source_alone(name: str, sections: dict[str, str], tmp_path: Path) -> None:
    section = dict(word.split(":", 1) for word in sections[name].partition(",loss:")[0].split(","))
    loss = {"qa": "info_nce", "sim": "cosent", "topics": "cross_entropy"}[name]
    alone = [f"data={section['source']}", f"data.train={section['train']}", f"data.test={section['test']}"]
    words = ["arms=[mrl]", "trainer.steps=12", "recipe=none", f"results_dir={tmp_path}", "run=r"]
    assert train.main([*alone, f"loss.name={loss}", "name=alone", *SHORT, *words]) == 0
    assert train.main([*mixture(sections, name), *words]) == 0
    alone_rows, mixed_rows = (
        [row[1:] for row in runs.read_rows(tmp_path / place / "evaluation.csv")]
        for place in ("alone/r", f"mixture/r/sources/{name}")
    )
    assert alone_rows == mixed_rows
    assert json.loads((tmp_path / "alone/r/dataset.json").read_text()) == json.loads(
        (tmp_path / f"mixture/r/sources/{name}/dataset.json").read_text()
    )


def test_each_source_has_rows_of_its_own_and_they_say_whose(mixed: Path) -> None:
    metrics = {"qa": "ndcg@10", "sim": "spearman", "topics": "linear_top1"}
    everything = runs.read_rows(mixed / "evaluation.csv")
    for name, metric in metrics.items():
        own = runs.read_rows(mixed / "sources" / name / "evaluation.csv")
        assert own == [row for row in everything if row.experiment == f"mixture.{name}"]
        found = {(row.arm, row.dim) for row in own if row.metric == metric and row.split == "test"}
        assert found == {(arm, dim) for arm in ("mrl", "ff") for dim in (4, 16)}
    assert {row.experiment for row in everything} == {f"mixture.{name}" for name in metrics}


def test_all_sources_are_learnt(mixed: Path) -> None:
    best = {
        name: max(r.value for r in runs.read_rows(mixed / f"sources/{name}/evaluation.csv") if r.metric == metric)
        for name, metric in (("qa", "recall@10"), ("sim", "spearman"), ("topics", "linear_top1"))
    }
    assert all(best[name] > least for name, least in {"qa": 0.45, "sim": 0.7, "topics": 0.8}.items()), best


def test_the_log_has_the_mean_of_the_sources_and_each(mixed: Path) -> None:
    lines = [json.loads(line) for line in (mixed / "metrics.jsonl").read_text().splitlines()]
    validation = [line for line in lines if line["split"] == "validation"]
    assert validation
    for line in validation:
        assert line["sources"].keys() == {"qa", "sim", "topics"}
        for kind in ("accuracy", "loss"):
            for dim, value in line[kind].items():
                assert value == pytest.approx(np.mean([of[kind][dim] for of in line["sources"].values()]), rel=1e-5)


@pytest.mark.slow
def test_arms_trained_together_have_the_numbers_of_those_trained_in_turn(
    sections: dict[str, str], tmp_path: Path
) -> None:
    words = [
        *mixture(sections, "qa", "topics"),
        "arms=[mrl]",
        "seeds=2",
        "trainer.steps=8",
        f"results_dir={tmp_path}",
    ]
    for population in ("loop", "vmap"):
        assert train.main([*words, f"trainer.population={population}", f"run={population}"]) == 0
    loop, vmap = (runs.read_rows(tmp_path / "mixture" / name / "evaluation.csv") for name in ("loop", "vmap"))
    values = {row[:-1]: row.value for row in vmap}
    assert len(values) == len(loop)
    for row in loop:
        assert values[row[:-1]] == pytest.approx(row.value, abs=0.051), row  # an example in the balance


@pytest.mark.slow
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(sections: dict[str, str], tmp_path: Path) -> None:
    words = [*mixture(sections, "qa", "topics"), "arms=[mrl]", "trainer.steps=3", f"results_dir={tmp_path}"]
    words += ["encoder.word_dropout=0", "encoder.dropout=0"]
    z = []
    for parts in (1, 4):
        assert train.main([*words, f"trainer.accumulate={parts}", f"run={parts}"]) == 0
        z.append(mrl_jax.load(tmp_path / "mixture" / str(parts)).encode(["what is bado bemi", "orbit1 common3"]))
    np.testing.assert_allclose(z[0], z[1], atol=1e-4)


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(
    sections: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        *mixture(sections, "qa", "sim", "topics"),
        "arms=[mrl]",
        "trainer.steps=20",
        "trainer.checkpoint_seconds=0",
    ]
    words += [f"results_dir={tmp_path}", "encoder.word_dropout=0.1"]
    assert train.main([*words, "run=whole"]) == 0
    interrupt_after_two_checkpoints([*words, "run=cut"], monkeypatch)
    assert train.main([*words, "run=cut", "resume=true"]) == 0
    whole, cut = (tmp_path / "mixture" / name for name in ("whole", "cut"))
    assert run_digests(whole) == run_digests(cut)
    for name in ("qa", "sim", "topics"):
        assert (whole / f"sources/{name}/SHA256SUMS").is_file()
        assert (whole / f"sources/{name}/evaluation.csv").read_text() == (
            cut / f"sources/{name}/evaluation.csv"
        ).read_text()


@pytest.mark.slow
def test_a_narrow_step_of_its_own_gives_what_one_hot_weights_give(
    sections: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = sections | {"qa": sections["qa"].replace("info_nce", "info_nce,learned_temperature:true")}
    words = [*mixture(learned, "qa", "topics"), "arms=[ff]", "trainer.steps=12", f"results_dir={tmp_path}"]
    assert train.main([*words, "run=wide"]) == 0
    monkeypatch.setattr(trainer, "WORTH_COMPILING_STEPS", 1)
    assert train.main([*words, "run=narrow"]) == 0
    wide, narrow = (mrl_jax.load(tmp_path / "mixture" / run, arm="ff4") for run in ("wide", "narrow"))
    texts = ["what is bado bemi", "orbit1 common3"]
    np.testing.assert_allclose(wide.encode(texts, 4), narrow.encode(texts, 4), atol=1e-4)
    for of in (wide, narrow):
        assert of.weights.params["sources"]["qa"]["log_temperature"] != np.log(np.float32(0.05))
    np.testing.assert_allclose(wide.classifiers()[4][0], narrow.classifiers()[4][0], atol=1e-4)


def test_a_run_is_resumed_with_its_own_mixture_only(
    mixed: Path, sections: dict[str, str], capsys: pytest.CaptureFixture
) -> None:
    words = [*mixture(sections, "qa", "sim", "topics"), "arms=[mrl,ff]", "trainer.steps=60", "resume=true", "run=first"]
    words += [f"results_dir={mixed.parents[1]}"]
    assert train.main(words) == 0
    assert train.main([*words, "data.mixing=uniform"]) == 2
    assert "data.mixing=None (now uniform)" in capsys.readouterr().err


# ---- what comes out --------------------------------------------------------------------------------------------------


def test_a_model_encodes_the_same_by_whichever_folder_it_is_loaded(mixed: Path) -> None:
    whole, of_source = mrl_jax.load(mixed), mrl_jax.load(mixed / "sources" / "qa")
    np.testing.assert_array_equal(whole.encode(["what is bado"]), of_source.encode(["what is bado"]))
    assert whole.fingerprint == of_source.fingerprint


def test_the_only_labelled_source_answers(mixed: Path, texts: dict[str, Path]) -> None:
    for place in (mixed, mixed / "sources" / "topics"):
        model = mrl_jax.load(place)
        assert model.classes == ("garden", "hockey", "kernel", "orbit")
        assert model.calibration is not None
        names, _ = model.predict(["hockey3 hockey7 common1", "orbit4 orbit9 common2"])
        assert names == ["hockey", "orbit"]


def test_a_service_answers_with_the_classes_of_the_only_labelled_source_and_watches_the_run(
    mixed: Path, texts: dict[str, Path], tmp_path: Path
) -> None:
    write_table(tmp_path / "corpus.jsonl", [{"_id": str(i), "text": f"orbit{i} common1"} for i in range(9)])
    for place in ("", "sources/topics", "sources/qa"):
        index = tmp_path / f"index-{Path(place).name}"
        assert search.main(["build", str(mixed / place), f"{tmp_path}/corpus.jsonl", "--index", str(index)]) == 0
        answers = Answers(str(index))
        expected = () if place == "sources/qa" else ("garden", "hockey", "kernel", "orbit")
        assert answers.facts.classes == expected
        assert any("checkpoints" in file for file in answers.facts.run_files)
        answers.close()


def test_a_source_without_classes_says_which_have_them(mixed: Path) -> None:
    with pytest.raises(UserError, match="no classifier; give the folder of a source that has: sources/topics"):
        mrl_jax.load(mixed / "sources" / "qa").predict(["a"])


def test_predict_reads_the_folder_of_a_source(mixed: Path, texts: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "labels.jsonl"
    assert predict.main([str(mixed / "sources" / "topics"), str(texts["test"]), "--out", str(out)]) == 0
    answers = [json.loads(line)["label"] for line in out.read_text().splitlines()]
    labels = [json.loads(line)["label"] for line in texts["test"].read_text().splitlines()]
    top1 = {
        (r.arm, r.dim): r.value
        for r in runs.read_rows(mixed / "sources/topics/evaluation.csv")
        if r[4:6] == ("test", "linear_top1")
    }
    assert np.mean([a == b for a, b in zip(answers, labels, strict=True)]) == pytest.approx(top1["mrl", 16], abs=1e-6)


def test_a_source_has_a_report_and_the_run_names_those_of_its_sources(mixed: Path, tmp_path: Path) -> None:
    for name, metric in (("qa", "ndcg@10"), ("topics", "top-1")):
        report.report([mixed / "sources" / name], tmp_path / name)
        page = (tmp_path / name / "report.md").read_text()
        assert f"mixture.{name}" in page
        assert metric in page.lower()
        with (tmp_path / name / "differences.csv").open() as file:
            assert list(csv.DictReader(file))
    with pytest.raises(
        UserError, match=r"several sources, each with a report of its own: .*sources/qa .*sources/topics"
    ):
        report.report([mixed], tmp_path)


def test_the_folder_of_a_source_has_its_own_number_of_steps(mixed: Path) -> None:
    steps = {
        name: config.from_yaml(mixed / "sources" / name / "config.yaml").trainer.steps
        for name in ("qa", "sim", "topics")
    }
    assert sum(map(int, steps.values())) == 60
    sizes = {name: of["examples"]["train"] for name, of in runs.read_dataset(mixed)["sources"].items()}
    for name, size in sizes.items():
        assert abs(steps[name] - 60 * size / sum(sizes.values())) < 2


@pytest.mark.slow
def test_two_mixtures_are_two_variants_of_a_source_where_it_had_as_many_steps(
    sections: dict[str, str], mixed: Path, tmp_path: Path
) -> None:
    words = [*mixture(sections, "qa", "sim", "topics"), "arms=[mrl,ff]", "trainer.steps=60", f"results_dir={tmp_path}"]
    assert train.main([*words, "data.mixing=temperature", "data.mixing_temperature=1", "run=temperature"]) == 0
    assert train.main([*words, "data.mixing=uniform", "run=uniform"]) == 0
    first, same, uniform = (
        run / "sources" / "sim" for run in (mixed, tmp_path / "mixture/temperature", tmp_path / "mixture/uniform")
    )
    report.report([first, same], tmp_path / "report")
    assert "temperature" in (tmp_path / "report" / "report.md").read_text()
    with pytest.raises(UserError, match="cannot be compared: steps is"):
        report.report([first, uniform], tmp_path / "report")


def test_a_model_card_has_the_quality_of_each_source(mixed: Path) -> None:
    model = mrl_jax.load(mixed)
    card = model_card.card(mixed, model, None, 0, library="mrl_jax", tags=(), note="", usage="")
    assert all(f"\n\n{name}:\n\n| dims | " in card for name in ("qa", "sim", "topics"))


# ---- what is refused -------------------------------------------------------------------------------------------------


def stsb(**more: str) -> str:
    return "{" + ",".join(["source:stsb", *(f"{key}:{value}" for key, value in more.items())]) + "}"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "data=mixture needs data.sources; write"),
        (["data.sources={}"], "data=mixture needs data.sources; write"),
        (["data.sources=[a]"], r"data.sources=\['a'\] is not allowed; a mapping"),
        (["data.sources={a:{source:stsb},a:{source:newsgroups}}"], "data.sources names a twice"),
        (["data.sources={a:{source:stsb,weight:1,weight:2}}"], "data.sources names weight twice"),
        (["data.sources={a:stsb}"], "data.sources.a=stsb is not allowed; a section with keys"),
        (["data.sources={a:{source:stbs}}"], r"data.sources.a.source=stbs is unknown \(did you mean stsb\?\)"),
        (["data.sources={a:{train:x}}"], "data.sources.a.source is missing"),
        (["data.sources={a:{source:mixture}}"], "data.sources.a.source=mixture is unknown"),
        (["data.sources={a:{source:stsb,wieght:2}}"], r"unknown key data.sources.a.wieght \(did you mean weight\?\)"),
        (["data.sources={a:{source:stsb,weight:0}}"], "data.sources.a.weight=0.0 is not allowed; more than 0"),
        (["data.sources={a/b:{source:stsb}}"], "data.sources.a/b is not allowed; a name of letters"),
        (
            ["data.sources={a:{source:stsb,loss:{nam:x}}}"],
            r"unknown key data.sources.a.loss.nam \(did you mean name\?\)",
        ),
        (["data.sources={a:{source:stsb,loss:{name:x}}}"], "data.sources.a.loss.name=x is unknown"),
        (["data.sources={a:{source:stsb,loss:cosent}}"], "data.sources.a.loss=cosent is not allowed; a mapping"),
        (["data.sources={a:{source:stsb,loss:{weights:[1,2]}}}"], "data.sources.a.loss.weights is not allowed: all"),
        (["data.sources={a:{source:files,streaming:true}}"], "data.sources.a.streaming=true is not allowed"),
        (["data.sources={a:{source:stsb}}", "data.mixing=even"], "data.mixing=even is unknown; allowed: proportional"),
        (["data.sources={a:{source:stsb}}", "data.mixing=temperature"], "mixing_temperature go together"),
        (["data.sources={a:{source:stsb}}", "data.mixing_temperature=2"], "mixing_temperature go together"),
        (
            ["data.sources={a:{source:stsb}}", "data.mixing=temperature", "data.mixing_temperature=0.5"],
            "data.mixing_temperature=0.5 is not allowed; at least 1",
        ),
        (["data.sources={a:{source:stsb}}", "evaluation.baseline=all"], "evaluation.baseline=all is not for data=mix"),
        (
            ["data.sources={a:{source:stsb,loss:{name:cosent}},b:{source:newsgroups}}", "arms=[mrl_e]"],
            "data.sources.a: arms=mrl_e is not allowed with loss.name=cosent",
        ),
        (
            ["data.sources={a:{source:stsb,loss:{name:cosent}},b:{source:newsgroups}}", "arms=[mrl,untuned]"],
            "data.sources.b: arms=untuned is not allowed with loss.name=cross_entropy",
        ),
        (
            ["data.sources={a:{source:stsb,loss:{name:cosent,learned_temperature:true}}}"],
            "data.sources.a: loss.learned_temperature=true is not allowed with loss.name=cosent",
        ),
        (
            [
                *("data.sources={a:{source:stsb,loss:{name:cosent,shortlist:1}}}", "width=8", "nesting_dims=[4,8]"),
                "loss.weights=[1,0]",
            ],
            "data.sources.a: loss.shortlist=1 is not allowed with loss.weights",
        ),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_read(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        config.from_command_line(["data=mixture", *words])


def test_a_source_of_an_experiment_is_changed_or_left_out_on_the_command_line() -> None:
    made = config.from_command_line(["+experiment=mixture", "++data.sources.stsb.weight=2", "~data.sources.wordnet"])
    assert made.data.sources is not None
    assert {name: source.weight for name, source in made.data.sources.items()} == {"stsb": 2.0}
    with pytest.raises(
        UserError, match=r"not in the experiment's file; write \+\+data.sources.stsb.weight=2 to add it"
    ):
        config.from_command_line(["+experiment=mixture", "data.sources.stsb.weight=2"])


def test_the_keys_of_a_mixture_belong_to_it_alone(sections: dict[str, str], tmp_path: Path) -> None:
    made = config.from_command_line(["data=stsb", "data.mixing=uniform"])
    with pytest.raises(UserError, match=r"data.mixing is not used by data=stsb; it belongs to mixture"):
        mrl_jax.data.load(made.data)


def refused(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> str:
    assert train.main([*words, f"results_dir={tmp_path}"]) == 2
    assert not (tmp_path / "mixture").exists()
    return capsys.readouterr().err


def test_a_source_with_another_loss_than_fits_it_is_named(
    sections: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    wrong = sections | {"sim": sections["sim"].replace("cosent", "info_nce")}
    message = refused(mixture(wrong, "qa", "sim"), tmp_path, capsys)
    assert "data.sources.sim: loss.name=info_nce does not fit data=sim, scored pairs; use cosent or cosine" in message


def test_a_source_without_a_file_or_a_validation_split_is_named(
    sections: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    gone = sections | {"sim": sections["sim"].replace("sim_test", "gone")}
    assert "data.sources.sim: data.test" in refused(mixture(gone, "qa", "sim"), tmp_path, capsys)
    message = refused([*mixture(sections, "qa", "sim"), "data.validation_fraction=0"], tmp_path, capsys)
    assert "data.sources.qa: data=qa: the validation split is empty" in message


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Sections of data.sources: features of 5, 5 and 6 coordinates with labels."""
    folder, rng, of = tmp_path_factory.mktemp("features"), np.random.default_rng(0), {}
    for name, width in (("a", 5), ("b", 5), ("c", 6)):
        place = folder / f"{name}.npz"
        np.savez(place, features=rng.normal(size=(40, width)).astype(np.float32), labels=np.arange(40) % 2)
        of[name] = f"source:features,train:{place},test:{place}"
    return of


def test_texts_and_features_are_no_mixture_nor_are_features_of_two_widths(
    sections: dict[str, str], features: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    message = refused(mixture(sections | features, "qa", "a"), tmp_path, capsys)
    assert "data.sources are of several kinds (qa text, a features); one encoder reads one kind" in message
    message = refused([*mixture(features, "a", "c"), "encoder=mlp"], tmp_path, capsys)
    assert "data.sources have inputs of several shapes (a [5], c [6])" in message


@pytest.mark.slow
def test_several_labelled_sources_have_classifiers_of_their_own(features: dict[str, str], tmp_path: Path) -> None:
    results = tmp_path / "results"
    words = [*mixture(features, "a", "b"), "encoder=mlp", "arms=[mrl_e,ff,truncated]", "trainer.steps=4", "run=r"]
    assert train.main([*words, f"results_dir={results}"]) == 0
    assert mrl_jax.load(results / "mixture/r/sources/b").classes == ("0", "1")
    with pytest.raises(UserError, match="no classifier; give the folder of a source that has: sources/a, sources/b"):
        mrl_jax.load(results / "mixture/r").predict(np.zeros((1, 5), np.float32))


def test_probes_of_a_source_are_scored_beside_a_source_without(sections: dict[str, str], tmp_path: Path) -> None:
    with_probe = sections | {"topics": sections["topics"] + ",hold_out:[hockey]"}
    words = [*mixture(with_probe, "qa", "topics"), "arms=[mrl]", "trainer.steps=4", "run=r"]
    assert train.main([*words, f"results_dir={tmp_path}"]) == 0
    rows = runs.read_rows(tmp_path / "mixture" / "r" / "sources" / "topics" / "evaluation.csv")
    assert {"unknown_softmax_auroc", "unknown_knn_auroc"} <= {row.metric for row in rows}


@pytest.mark.slow
def test_damage_and_few_examples_are_measured_for_a_labelled_source(sections: dict[str, str], tmp_path: Path) -> None:
    words = [*mixture(sections, "topics"), "arms=[mrl]", "trainer.steps=4", "run=r"]
    words += ["evaluation.corruption=[typos]", "evaluation.few_shot=[1]", f"results_dir={tmp_path}"]
    assert train.main(words) == 0
    rows = runs.read_rows(tmp_path / "mixture" / "r" / "sources" / "topics" / "evaluation.csv")
    assert {"typos_top1", "typos5_top1", "few1_top1"} <= {row.metric for row in rows}


def test_a_source_that_never_has_its_turn_is_refused(
    sections: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    small = sections | {"sim": sections["sim"] + ",weight:0.001"}
    message = refused([*mixture(small, "qa", "sim"), "trainer.steps=20"], tmp_path, capsys)
    assert "data.sources.sim has none of the 20 steps" in message


def test_prompts_are_of_the_source_or_of_all_and_it_is_said_how_often_each_source_is_gone_through(
    sections: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with_own = sections | {"qa": sections["qa"] + ",prompts:{query:'ask '}"}
    words = [
        *mixture(with_own, "qa", "sim"),
        "data.prompts={default:'say '}",
        "data.mixing=uniform",
        "trainer.steps=4",
        "run=r",
    ]
    assert train.main([*words, f"results_dir={tmp_path}"]) == 0
    assert "sim: 2 of 4 steps, 0.237 passes over 135 training examples" in capsys.readouterr().err
    run = tmp_path / "mixture" / "r"
    assert mrl_jax.load(run / "sources" / "qa").prompts.texts == {"query": "ask "}
    assert mrl_jax.load(run / "sources" / "sim").prompts.texts == {"default": "say "}
    assert mrl_jax.load(run).prompts.texts == {"default": "say "}


def test_classifiers_read_texts_with_the_prompt_that_they_were_trained_with(
    sections: dict[str, str], tmp_path: Path
) -> None:
    with_own = sections | {"topics": sections["topics"] + ",prompts:{default:'orbit1 '}"}
    words = [*mixture(with_own, "qa", "topics"), "trainer.steps=4", f"results_dir={tmp_path}", "run=r"]
    assert train.main(words) == 0
    run = tmp_path / "mixture" / "r"
    assert mrl_jax.load(run / "sources" / "topics").predict(["hockey1"])[0]
    with pytest.raises(UserError, match="give the folder of a source that has: sources/topics"):
        mrl_jax.load(run).predict(["hockey1"])
