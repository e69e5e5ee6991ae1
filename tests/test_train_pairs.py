"""Training on pairs from the command line: what is learnt, measured, kept and refused."""

import json
import random
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    TRANSFORMER,
    WORDS,
    interrupt_after_two_checkpoints,
    random_pair,
    run_digests,
    write_table,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import mrl_jax
from mrl_jax import arms, data, runs, train
from mrl_jax.config import LossConfig, OptimizerConfig
from mrl_jax.data.relevance import FurtherPositives
from mrl_jax.encoders.mlp import MLPConfig
from mrl_jax.encoders.transformer_settings import TransformerConfig
from mrl_jax.evaluate import ranking
from mrl_jax.losses import nested_info_nce
from mrl_jax.runs import checkpoint
from mrl_jax.tasks.pair_objectives import ContrastiveObjective
from mrl_jax.training.batches import Examples, PairExamples
from mrl_jax.training.step import TrainStep


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    train_file = write_table(folder / "train.jsonl", [random_pair(rng) for _ in range(400)])
    test_file = write_table(folder / "test.jsonl", [random_pair(rng) for _ in range(60)])
    return ["data=pairs", f"data.train={train_file}", f"data.test={test_file}"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, rng = tmp_path_factory.mktemp("scored"), np.random.default_rng(0)

    def row() -> dict:
        words = list(rng.choice(WORDS, 4, replace=False))
        same = int(rng.integers(0, 5))
        others = words[:same] + list(rng.choice(WORDS, 4 - same, replace=False))
        return {"sentence1": " ".join(words), "sentence2": " ".join(others), "score": same}

    train_file = write_table(folder / "train.jsonl", [row() for _ in range(300)])
    test_file = write_table(folder / "test.jsonl", [row() for _ in range(80)])
    return ["data=pairs", f"data.train={train_file}", f"data.test={test_file}"]


def run(words: list[str], results: Path, name: str = "run") -> Path:
    assert train.main([*words, "name=pairs", f"run={name}", f"results_dir={results}"]) == 0
    return results / "pairs" / name


def rows(directory: Path, arm: str, metric: str, split: str = "test") -> dict[int, float]:
    found = runs.read_rows(directory / "evaluation.csv")
    return {r.dim: r.value for r in found if (r.arm, r.metric, r.split) == (arm, metric, split)}


@pytest.fixture(scope="module")
def bag(files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [
        *(*files, "loss.name=info_nce", "width=32", "nesting_dims=[8,32]", "arms=all", "trainer.steps=80"),
        *("trainer.batch_size=64", "trainer.evaluations=2", "optimizer.learning_rate=0.03", "encoder.word_dropout=0.1"),
    ]
    return run(words, tmp_path_factory.mktemp("bag"))


def test_a_bag_learns_to_find_the_partner_of_a_text(bag: Path) -> None:
    found, before = rows(bag, "mrl", "ndcg@10"), rows(bag, "untuned", "ndcg@10")
    assert found[32] > 0.6 > 0.3 > before[32]
    assert found.keys() == {8, 20, 32}
    assert rows(bag, "mrl", "recall@100")[32] > 0.9


def test_every_arm_is_measured_and_what_was_measured_can_be_reported(bag: Path, tmp_path: Path) -> None:
    from mrl_jax import report

    found = {row.arm for row in runs.read_rows(bag / "evaluation.csv")}
    assert found == set(arms.suited_to("pairs"))
    assert rows(bag, "ff", "mrr@10").keys() == {8, 32}
    report.report([bag], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "nDCG@10" in text
    assert "untuned" in text
    assert "classifier" not in text
    with np.load(bag / "predictions" / "mrl-seed0.npz") as outcomes:
        assert outcomes["test/ndcg@10/8"].mean() == pytest.approx(rows(bag, "mrl", "ndcg@10")[8], abs=1e-6)


def test_a_fixed_size_arm_uses_its_own_coordinates_only(bag: Path) -> None:
    """No gradient reaches the coordinates that FF(8) does not read."""
    model = mrl_jax.load(bag, arm="ff8")
    start = np.asarray(model.program.init(0).model.params["encoder"]["embedding"])
    end = np.asarray(model.weights.params["encoder"]["embedding"])
    decayed = np.sum(end[:, 8:] * start[:, 8:]) / np.sum(start[:, 8:] ** 2)  # by weight decay alone
    np.testing.assert_allclose(end[:, 8:], decayed * start[:, 8:], atol=1e-6)
    assert np.abs(end[:, :8] - decayed * start[:, :8]).max() > 0.01


@pytest.mark.slow
def test_a_transformer_reads_packed_pairs_of_two_seeds_in_turn_or_together(files: list[str], tmp_path: Path) -> None:
    words = [*files, *TRANSFORMER, "loss.name=info_nce", "trainer.steps=4", "trainer.batch_size=16", "seeds=2"]
    words += ["trainer.evaluations=1", "arms=[mrl,ff]", "loss.learned_temperature=true", "loss.distillation=0.5"]
    values = {}
    for population in ("loop", "vmap"):
        directory = run([*words, f"trainer.population={population}"], tmp_path, population)
        values[population] = [row.value for row in sorted(runs.read_rows(directory / "evaluation.csv"))]
    np.testing.assert_allclose(values["loop"], values["vmap"], atol=1e-5)
    z = mrl_jax.load(directory, "mrl").encode(["what is bado", "kilu"], dim=8)
    assert z.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("loss", ["cosent", "cosine"])
def test_scores_are_learnt(loss: str, scored: list[str], tmp_path: Path) -> None:
    words = [*scored, f"loss.name={loss}", "width=32", "nesting_dims=[8,32]", "arms=[mrl]", "trainer.steps=120"]
    words += [
        "trainer.batch_size=64",
        "optimizer.learning_rate=0.02",
        "encoder.word_dropout=0",
        "trainer.evaluations=2",
    ]
    directory = run([*words, "loss.distillation=0.1"], tmp_path)
    assert rows(directory, "mrl", "spearman")[32] > 0.75
    assert rows(directory, "mrl", "spearman", "validation").keys() == {8, 20, 32}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["loss.name=cosent"], "loss.name=cosent does not fit data=train, pairs; use info_nce"),
        ([], "loss.name=cross_entropy does not fit data=train, pairs; use info_nce"),
        (["loss.name=info_nce", "arms=[mrl_e]"], "arms=mrl_e is not allowed with loss.name=info_nce"),
        (["loss.name=info_nce", "loss.temperature=0"], "loss.temperature=0.0 is not allowed; 0.01 ≤ value ≤ 1"),
        (["loss.name=cosent", "loss.learned_temperature=true"], "loss.learned_temperature=true is not allowed"),
        (["loss.name=info_nce", "loss.label_smoothing=0.1"], "loss.label_smoothing=0.1 is not allowed"),
        (["arms=[untuned]"], "arms=untuned is not allowed with loss.name=cross_entropy"),
        (["loss.name=infonce"], "loss.name=infonce"),
    ],
)
def test_what_does_not_go_together_is_refused(
    change: list[str], said: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*files, *change, "name=pairs", f"results_dir={tmp_path}"]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_validation_pairs_may_have_other_negatives_but_must_be_of_the_same_kind(
    files: list[str], scored: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    hard = [random_pair(rng) | {"negative": random_pair(rng)["positive"]} for _ in range(60)]
    train_file = write_table(tmp_path / "hard.jsonl", hard)
    words = ["encoder=bag", "encoder.min_documents=1", "width=32", "nesting_dims=[8,32]", "loss.name=info_nce"]
    words += ["trainer.steps=4", "trainer.batch_size=16", "trainer.evaluations=2", "arms=[mrl]"]
    plain = write_table(tmp_path / "plain.jsonl", [random_pair(rng) for _ in range(20)])
    run([*files, *words, f"data.train={train_file}", f"data.validation={plain}"], tmp_path, "fewer")
    run([*files, *words, f"data.validation={train_file}"], tmp_path, "more")
    other = next(word.partition("=")[2] for word in scored if word.startswith("data.train="))
    command = [*files, *words, f"data.validation={other}", f"results_dir={tmp_path}", "name=other"]
    assert train.main(command) == 2
    assert "train has pairs, validation scored pairs; both have" in capsys.readouterr().err


@pytest.mark.slow
def test_texts_that_are_cut_are_counted_once(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*files, *TRANSFORMER, "loss.name=info_nce", "trainer.steps=1", "trainer.batch_size=8", "arms=[mrl]"]
    directory = run([*words, "encoder.max_length=6", "trainer.evaluations=1"], tmp_path)
    assert capsys.readouterr().err.count("are longer than encoder.max_length=6 and are cut") == 1
    model = mrl_jax.load(directory)
    model.encode(["bado " * 50])
    model.encode(["bado " * 50])
    assert capsys.readouterr().err.count("1 texts were longer than 6 tokens and were cut") == 1


def program(encoder, inputs: dict, vocabulary: int, **changes) -> TrainStep:
    settings = {"loss": LossConfig(name="info_nce"), "columns": 2} | changes
    objective = ContrastiveObjective((4, 16), settings.pop("columns"), settings.pop("loss"))
    return TrainStep(
        encoder=encoder,
        inputs=inputs,
        vocabulary=vocabulary,
        width=16,
        objective=objective,
        optimizer_config=OptimizerConfig("sgd", learning_rate=1.0, schedule="constant", weight_decay=0.0, momentum=0.0),
        steps=1,
        **settings,
    )


@pytest.mark.parametrize(
    ("columns", "loss"),
    [
        (2, LossConfig(name="info_nce")),
        (4, LossConfig(name="info_nce", learned_temperature=True)),
        (3, LossConfig(name="sigmoid")),
    ],
)
@pytest.mark.slow
def test_a_batch_in_parts_has_the_gradient_of_the_whole(columns: int, loss: LossConfig) -> None:
    """Gradient caching through the program, packing and repeated texts included; one SGD step shows the gradient."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 12, 50)
    mask = np.arange(12) < lengths[:, None]
    table = Examples(
        {"ids": rng.integers(1, 40, (50, 12)).astype(np.int32) * mask, "mask": mask.astype(np.int8)}, np.zeros(50)
    )
    pairs = rng.integers(0, 50, (16, columns)).astype(np.int32)
    sizes = {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 16, "max_length": 12}
    encoder = TransformerConfig(**sizes, dropout=0.0, attention_dropout=0.0)
    found = []
    for parts in (1, 4):
        made = program(encoder, {"ids": (12,), "mask": (12,)}, 40, accumulate=parts, columns=columns, loss=loss)
        examples = PairExamples(table, pairs, None, chunks=parts, mask_known=True)
        assert examples.take(np.arange(16))["label"].ndim == 2
        (arm,) = arms.expand(["mrl"], made.dims)
        step = jax.jit(made.step)
        state, _ = step(made.init(0), examples.take(np.arange(16)), arm.row(made.kinds), jax.random.key(0))
        found.append(state.model.params)
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6 * float(np.abs(one).max()) + 1e-6, rtol=1e-4)


@pytest.mark.slow
def test_pairs_of_features_train_an_adaptor() -> None:
    """The loss of a step is that of the embeddings of anchors, positives and negatives, column by column."""
    rng = np.random.default_rng(0)
    table = Examples({"features": rng.normal(size=(30, 5)).astype(np.float32)}, np.zeros(30))
    pairs = rng.integers(0, 30, (8, 3)).astype(np.int32)
    made = program(MLPConfig(hidden=(), dropout=0.0), {"features": (5,)}, 0, columns=3)
    (arm,) = arms.expand(["mrl"], made.dims)
    state = made.init(0)
    z = made.embed(state.model, {"features": jnp.asarray(table.inputs["features"])})
    wanted, _ = nested_info_nce(z[pairs[:, 0]], z[pairs[:, 1:].T.ravel()], made.dims, jnp.ones(2))
    examples = PairExamples(table, pairs, None)
    _, measures = jax.jit(made.step)(state, examples.take(np.arange(8)), arm.row(made.kinds), jax.random.key(0))
    assert float(measures.losses.sum()) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.slow
def test_an_adaptor_makes_frozen_embeddings_of_any_model_nested(tmp_path: Path) -> None:
    """Queries and documents whose common part is hidden by a rotation and noise: an MLP learns to bring it forward."""
    rng = np.random.default_rng(0)
    mixing = np.linalg.qr(rng.normal(size=(24, 24)))[0]

    def write(name: str, n: int) -> Path:
        common = rng.normal(size=(n, 8))
        anchors, positives = (np.hstack([common, rng.normal(size=(n, 16))]) @ mixing for _ in range(2))
        path = tmp_path / f"{name}.npz"
        np.savez(path, anchors=anchors.astype(np.float32), positives=positives.astype(np.float32))
        return path

    test = write("test", 200)
    words = ["data=features", "data.task=pairs", f"data.train={write('train', 2000)}", f"data.test={test}"]
    words += ["encoder=mlp", "encoder.hidden=[]", "loss.name=info_nce", "width=24", "nesting_dims=[8,24]", "arms=[mrl]"]
    words += ["trainer.steps=150", "trainer.batch_size=128", "optimizer.learning_rate=0.01", "trainer.evaluations=2"]
    directory = run(words, tmp_path / "results")
    raw, judgments = np.load(test), np.stack([np.arange(200), np.arange(200), np.ones(200, int)], axis=1)
    (frozen,) = ranking.rank(raw["anchors"], raw["positives"], judgments, (8,))
    assert rows(directory, "mrl", "ndcg@10")[8] > 0.9 > 0.5 > frozen["ndcg@10"].mean()
    assert mrl_jax.load(directory).encode(np.zeros((3, 24), np.float32), dim=8).shape == (3, 8)


DEVICES = """
import os, sys
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[1]}"
from mrl_jax import train
sys.exit(train.main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_several_devices_share_packed_pairs_and_all_their_negatives(files: list[str], tmp_path: Path) -> None:
    words = [*files, *TRANSFORMER, "loss.name=info_nce", "trainer.steps=4", "trainer.batch_size=16", "arms=[mrl]"]
    words += ["trainer.evaluations=1", "trainer.log_every=1", "encoder.dropout=0", "encoder.attention_dropout=0"]
    found = {}
    for devices in ("1", "4"):
        command = [sys.executable, "-c", DEVICES, devices, *words, "name=pairs", f"run={devices}"]
        subprocess.run([*command, f"results_dir={tmp_path}"], check=True, capture_output=True)
        log = (tmp_path / "pairs" / devices / "metrics.jsonl").read_text().splitlines()
        found[devices] = [json.loads(line)["loss"] for line in log if '"train"' in line]
    assert len(found["1"]) == 4
    for one, four in zip(found["1"], found["4"], strict=True):
        assert one == pytest.approx(four, rel=1e-4)


def test_validation_pairs_are_a_search_of_their_own_documents() -> None:
    table = Examples({"features": np.zeros((9, 2), np.float32)}, np.zeros(9))
    pairs = PairExamples(table, np.array([[4, 1, 8], [2, 1, 7], [4, 3, 8]], np.int32), None)
    search = pairs.search()
    np.testing.assert_array_equal(search.queries, [2, 4])
    np.testing.assert_array_equal(search.documents, [1, 3, 7, 8])
    np.testing.assert_array_equal(search.judgments, [[0, 0, 1], [1, 0, 1], [1, 1, 1]])
    assert not len(search.own)


def test_published_sources_are_pairs() -> None:
    assert isinstance(data.load(data.DataConfig(source="stsb", limit=20)), data.PairDataset)


@pytest.fixture(scope="module")
def few_answers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Many questions, eight answers: each question has words of its topic, the answer has none of them."""
    folder, rng = tmp_path_factory.mktemp("answers"), random.Random(6)

    def rows(count: int) -> list[dict]:
        topics = [i % 8 for i in range(count)]
        questions = (" ".join(rng.choices([f"t{k}w{j}" for j in range(15)], k=6)) for k in topics)
        return [
            {"anchor": f"{words} u{rng.randrange(10**6)}", "positive": f"answer number a{k} b{k} c{k}"}
            for k, words in zip(topics, questions, strict=True)
        ]

    sizes = {"train": 480, "test": 80, "validation": 80}
    files = {name: write_table(folder / f"{name}.jsonl", rows(count)) for name, count in sizes.items()}
    return ["data=pairs", *(f"data.{name}={path}" for name, path in files.items())]


def validation(directory: Path, member: str) -> list[dict]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "validation" and line["member"] == member]


@pytest.mark.parametrize("population", ["loop", "vmap"])
@pytest.mark.slow
def test_few_answers_to_many_questions(population: str, few_answers: list[str], tmp_path: Path) -> None:
    """Every right answer counts, also that of another row, and of moments that are all right the surest is kept."""
    words = ["loss.name=info_nce", "width=16", "nesting_dims=[8,16]", "trainer.steps=100", "arms=[mrl,ff]"]
    words += ["encoder.min_documents=1", "optimizer.learning_rate=0.03", "trainer.batch_size=64"]
    directory = run([*few_answers, *words, f"trainer.population={population}"], tmp_path)
    assert rows(directory, "mrl", "recall@1") == {8: 1.0, 12: 1.0, 16: 1.0}
    for member in ("mrl-seed0", "ff8-seed0"):
        moments = validation(directory, member)
        assert set(moments[-1]["accuracy"].values()) == {1.0}
        scores = [(np.mean(list(m["accuracy"].values())), -np.mean(list(m["loss"].values()))) for m in moments]
        kept = moments[scores.index(max(scores))]["step"]
        assert checkpoint.saved_steps(directory / "checkpoints" / member / "model") == [kept]
    assert moments[-1]["loss"]["8"] < 0.1  # with equal answers as negatives it would be at least log 8


@pytest.mark.parametrize("more", [[], ["trainer.no_duplicates=true"]])
@pytest.mark.slow
def test_a_resumed_run_of_repeated_texts_is_that_of_an_undisturbed_one(
    more: list[str], few_answers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        *few_answers,
        *more,
        "loss.name=info_nce",
        "width=8",
        "nesting_dims=[4,8]",
        "trainer.steps=20",
        "arms=[mrl]",
    ]
    words += ["encoder.min_documents=1", "trainer.batch_size=32", "trainer.evaluations=5", "trainer.log_every=2"]
    words += ["trainer.checkpoint_seconds=0", "name=pairs", f"results_dir={tmp_path}"]
    assert train.main([*words, "run=whole"]) == 0
    interrupt_after_two_checkpoints([*words, "run=stopped"], monkeypatch)
    assert train.main([*words, "run=stopped", "resume=true"]) == 0
    whole, stopped = (run_digests(tmp_path / "pairs" / name) for name in ("whole", "stopped"))
    assert stopped == whole
    assert train.main([*words, "run=stopped", "resume=true", "loss.mask_known=false"]) == 2


def test_without_the_mask_a_run_is_that_of_an_earlier_version(few_answers: list[str], tmp_path: Path) -> None:
    words = ["loss.name=info_nce", "width=8", "nesting_dims=[8]", "trainer.steps=4", "arms=[mrl]"]
    words += ["encoder.min_documents=1", "trainer.batch_size=32", "trainer.evaluations=2"]
    directory = run([*few_answers, *words, "loss.mask_known=false"], tmp_path)
    (first, last) = validation(directory, "mrl-seed0")
    assert max(first["accuracy"]["8"], last["accuracy"]["8"]) <= 24 / 80  # only the first of equal answers is right


def test_a_batch_of_different_texts_is_as_it_was() -> None:
    table = Examples({"features": np.zeros((9, 2), np.float32)}, np.zeros(9))
    columns = np.array([[0, 1], [2, 3], [4, 1], [0, 5]], np.int32)
    masked, plain = (PairExamples(table, columns, None, mask_known=mask) for mask in (True, False))
    for rows_, same in (([0, 1], True), ([0, 2], False), ([0, 3], False), ([1, 1], False)):
        labels = [pairs.take(np.array(rows_))["label"] for pairs in (masked, plain)]
        assert (labels[0].shape == labels[1].shape) == same
        assert same or labels[0][:, :2].tolist() == columns[rows_].tolist()
    assert PairExamples(table, columns, np.ones(4), mask_known=True).take(np.array([0, 2]))["label"].ndim == 1


@given(st.integers(0, 2**31), st.sampled_from([(5, 2), (12, 2), (12, 3)]))
@settings(max_examples=20, deadline=None)
def test_a_right_answer_is_any_known_positive_but_never_the_query(seed: int, sizes: tuple[int, int]) -> None:
    """The score of a batch against a loop; z has equal rows for equal texts, as in evaluation."""
    (texts, columns), rng = sizes, np.random.default_rng(seed)
    pairs = rng.integers(0, texts, (20, columns)).astype(np.int32)
    batch, z = pairs[rng.permutation(20)[:8]], rng.normal(size=(texts, 16)).astype(np.float32)
    known = {(row[0], row[1]) for row in pairs.tolist()}
    valid = np.arange(8) < 6
    label = FurtherPositives(pairs).labels([batch])
    label_ = np.zeros(8, np.float32) if label is None else label[0]
    objective = ContrastiveObjective((4, 16), 2, LossConfig(name="info_nce"))
    right, lost = objective.score({}, z[batch.T.ravel()], label_, valid)
    for m, count in zip((4, 16), right[0], strict=True):
        answers = 0
        for query, *_ in batch[:6].tolist():
            candidates = [int(d) for d in batch[:6, 1] if d != query or (query, d) in known]
            cosines = [
                z[query, :m] @ z[d, :m] / np.linalg.norm(z[query, :m]) / np.linalg.norm(z[d, :m]) for d in candidates
            ]
            answers += (query, candidates[int(np.argmax(cosines))]) in known
        assert int(count) == answers
    assert np.isfinite(lost).all()


def test_queries_that_are_documents_do_not_rank_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in ArguAna, where queries have the ids of documents, and in pairs in both directions, as in Quora."""
    rng = np.random.default_rng(0)
    names = [" ".join(rng.choice(WORDS, 4, replace=False)) for _ in range(60)]
    copies = [f"{name} {word}" for name, word in zip(names, rng.choice(WORDS, 60), strict=True)]
    folder = tmp_path / "arguments"
    (folder / "qrels").mkdir(parents=True)
    texts = {f"{side}{i}": text for side, part in (("a", names), ("b", copies)) for i, text in enumerate(part)}
    for name in ("corpus", "queries"):
        write_table(folder / f"{name}.jsonl", [{"_id": id_, "text": text} for id_, text in texts.items()])
    for name, numbers in (("train", range(40)), ("test", range(40, 60))):
        lines = [f"a{i}\tb{i}\t1\nb{i}\ta{i}\t1\n" for i in numbers]
        (folder / "qrels" / f"{name}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    both = [pair for i in range(60) for pair in ((names[i], copies[i]), (copies[i], names[i]))]
    files = [
        write_table(tmp_path / f"{name}.jsonl", [{"anchor": a, "positive": b} for a, b in part])
        for name, part in (("train", both[:80]), ("test", both[80:]))
    ]
    words = ["loss.name=info_nce", "width=16", "nesting_dims=[16]", "trainer.steps=20", "arms=[mrl]"]
    words += ["trainer.batch_size=16", "trainer.evaluations=1", "encoder.min_documents=1", "recipe=none"]
    for name, source in (
        ("beir", ["data=beir", f"data.path={folder}"]),
        ("pairs", ["data=pairs", f"data.train={files[0]}", f"data.test={files[1]}"]),
    ):
        found = rows(run([*source, *words], tmp_path, name), "mrl", "recall@1")[16]
        said = capsys.readouterr().err
        assert "test: 40 of 40 queries are documents themselves and do not rank their own" in said
        kept = run([*source, *words, "evaluation.ignore_identical_ids=false"], tmp_path, f"{name}-kept")
        assert rows(kept, "mrl", "recall@1")[16] < 0.1 < 0.9 < found
        assert "documents themselves" not in capsys.readouterr().err
