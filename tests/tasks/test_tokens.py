"""Nested masked language modelling from the command line: what is learnt, measured, kept, exported and refused."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import TRANSFORMER, interrupt_after_two_checkpoints, run_digests

import mrl_jax
from mrl_jax import config as configuration
from mrl_jax import export, report, runs, tasks, train
from mrl_jax.config import LossConfig
from mrl_jax.encoders import transformer_settings
from mrl_jax.encoders.transformer_settings import TransformerConfig
from mrl_jax.losses import nested_token_prediction
from mrl_jax.runs import checkpoint
from mrl_jax.tasks.tokens import TokenObjective


def sentences(count: int, seed: int) -> list[str]:
    """Words that follow one another in a fixed order, so that a hidden one can be told from its neighbours. All texts
    are equally long, so that batches have one shape to compile for."""
    starts = np.random.default_rng(seed).integers(0, 12, count)
    return [" ".join(f"w{chr(97 + (start + i) % 12)}" for i in range(6)) for start in starts]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("texts")
    for name, count, seed in (("train", 300, 0), ("test", 60, 1)):
        (folder / f"{name}.txt").write_text("\n".join(sentences(count, seed)) + "\n", encoding="utf-8")
    return [
        *("data=texts", f"data.train={folder / 'train.txt'}", f"data.test={folder / 'test.txt'}", "loss.name=mlm"),
        *TRANSFORMER,
        *("trainer.steps=24", "trainer.batch_size=32", "trainer.evaluations=2", "trainer.log_every=4", "name=mlm"),
        *("optimizer.learning_rate=0.01", "arms=[mrl,ff,truncated]", "encoder.dropout=0"),
    ]


@pytest.fixture(scope="module")
def finished(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    assert train.main([*words, f"results_dir={results}", "run=first"]) == 0
    return results / "mlm" / "first"


def values(run: Path, metric: str, split: str = "test") -> dict[tuple[str, int], float]:
    rows = runs.read_rows(run / "evaluation.csv")
    return {(r.arm, r.dim): r.value for r in rows if (r.metric, r.split) == (metric, split)}


def test_every_arm_has_both_metrics_at_its_dims(finished: Path) -> None:
    for metric in ("masked_top1", "perplexity"):
        found = values(finished, metric)
        assert found.keys() == {
            *(("mrl", m) for m in (8, 20, 32)), ("ff", 8), ("ff", 32), *(("truncated", m) for m in (8, 20, 32)),
        }  # fmt: skip
        assert found["truncated", 32] == found["ff", 32]


def test_it_learns_what_stands_beside_a_hidden_word(finished: Path) -> None:
    """By its neighbours a word is known; without them it is one of twelve."""
    log = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if line["member"] == "mrl-seed0" and line["split"] == "train"]
    for dim in ("8", "32"):
        assert losses[-1][dim] < 0.6 * losses[0][dim]


def test_the_scores_are_those_of_the_formula(finished: Path) -> None:
    """Recomputed in float64 from the parameters and the hidden tokens; outcomes of texts go with them."""
    config = configuration.from_yaml(finished / "config.yaml")
    model = mrl_jax.load(finished)
    dataset = tasks.description.put_prompts(config, mrl_jax.data.load(config.data))
    splits = tasks.description.read_splits(config, dataset, model.reader)
    examples, m = splits["test"], 8
    batch = examples.take(np.arange(len(examples)))
    label = batch.pop("label")
    states = np.asarray(model.program.embed(model.weights, batch), np.float64)
    table = np.asarray(model.weights.params["encoder"]["word"], np.float64)
    bias = np.asarray(model.weights.params["token_bias"], np.float64)
    logits = states[:, :m] @ table[:, :m].T + bias
    lost = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(label)), label[:, 0]]
    right = logits.argmax(axis=1) == label[:, 0]
    of = [np.flatnonzero((label[:, 1] == text) & (label[:, 0] >= 0)) for text in range(len(examples))]
    shares, losses = (np.array([x[rows].mean() for rows in of]) for x in (right, lost))
    assert values(finished, "masked_top1")["mrl", m] == pytest.approx(shares.mean(), abs=1e-6)
    assert values(finished, "perplexity")["mrl", m] == pytest.approx(np.exp(losses.mean()), rel=1e-4)
    with np.load(finished / "predictions" / "mrl-seed0.npz") as kept:
        np.testing.assert_allclose(kept[f"test/masked_top1/{m}"], shares, atol=1e-7)
        np.testing.assert_allclose(kept[f"test/perplexity/{m}"], losses, rtol=1e-3, atol=1e-5)


def test_the_loss_of_a_step_is_that_of_the_states_of_hidden_tokens_alone(finished: Path) -> None:
    """The states are those of all tokens at the hidden cells, and padding of the predictions changes nothing."""
    model = mrl_jax.load(finished)
    arrays = model.reader(["wa wb wc wd we", "wg wh"])
    module = mrl_jax.encoders.create(
        model.program.encoder, inputs={"ids": (1,), "mask": (1,)}, vocabulary=model.program.vocabulary, width=32,
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    states = np.asarray(module.states({k: jnp.asarray(v) for k, v in arrays.items()}, None))
    cells = np.array([1, 3, arrays["ids"].shape[1]])
    picked = module({**{k: jnp.asarray(v) for k, v in arrays.items()}, "masked": jnp.asarray(cells)})
    np.testing.assert_array_equal(picked, states.reshape(-1, 32)[cells])
    objective, params = model.program.objective, model.weights.params
    label = np.array([[5, 0], [6, 0], [7, 1]])
    padded = np.concatenate([label, np.full((2, 2), -1)])
    z = jnp.concatenate([picked, jnp.ones((2, 32))])
    weights = jnp.array([[1.0, 0.5]])
    alone, _ = nested_token_prediction(
        picked, params["encoder"]["word"], params["token_bias"], jnp.asarray(label[:, 0]), (8, 32), weights[0]
    )
    assert float(objective.loss(params, z, jnp.asarray(padded), weights)[0]) == pytest.approx(float(alone), rel=1e-6)


def test_a_table_that_does_not_learn_has_no_gradient() -> None:
    """As with products of low rank beside frozen matrices; the bias learns all the same."""
    objective = TokenObjective((2, 4), 9, LossConfig("mlm"), table_learns=False)
    rng = np.random.default_rng(0)
    params = {"encoder": {"word": jnp.float32(rng.normal(size=(9, 4)))}, "token_bias": jnp.zeros(9)}
    states, label = jnp.float32(rng.normal(size=(3, 4))), jnp.array([[1, 0], [8, 0], [-1, -1]])
    gradient = jax.grad(lambda params: objective.loss(params, states, label, jnp.ones((1, 2)))[0])(params)
    assert not np.asarray(gradient["encoder"]["word"]).any()
    assert np.asarray(gradient["token_bias"]).any()


def test_members_together_get_the_numbers_of_members_in_turn(words: list[str], tmp_path: Path) -> None:
    """After few steps: rounding grows with each of them."""
    for population in ("vmap", "loop"):
        command = [*words, f"results_dir={tmp_path}", f"run={population}", f"trainer.population={population}"]
        assert train.main([*command, "trainer.arms_at_once=3", "trainer.steps=3", "trainer.evaluations=1"]) == 0
    together, alone = (values(tmp_path / "mlm" / name, "perplexity") for name in ("vmap", "loop"))
    assert together == pytest.approx(alone, rel=1e-3)


def test_stopped_and_resumed_it_ends_in_the_same_bits(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*words, "arms=[mrl]", "trainer.log_every=8", "trainer.checkpoint_seconds=0", f"results_dir={tmp_path}"]
    assert train.main([*command, "run=whole"]) == 0
    saved = interrupt_after_two_checkpoints([*command, "run=stopped"], monkeypatch)
    assert saved[-1][0] < 24
    assert train.main([*command, "run=stopped", "resume=true"]) == 0
    assert run_digests(tmp_path / "mlm" / "stopped") == run_digests(tmp_path / "mlm" / "whole")


@pytest.mark.slow
def test_parts_of_a_batch_streamed_texts_and_whole_words_train_too(words: list[str], tmp_path: Path) -> None:
    quick = [*words, "arms=[mrl]", "trainer.steps=2", "trainer.evaluations=1", f"results_dir={tmp_path}"]
    assert train.main([*quick, "run=held"]) == 0
    assert train.main([*quick, "run=streamed", "data.streaming=true", f"data.cache_dir={tmp_path / 'cache'}"]) == 0
    held, streamed = (run_digests(tmp_path / "mlm" / name) for name in ("held", "streamed"))
    assert held["parameters"] == streamed["parameters"]
    assert train.main([*quick, "run=parts", "trainer.accumulate=2", "loss.whole_words=true"]) == 0


def test_a_run_is_reported_and_encodes_and_has_no_classifier(finished: Path, tmp_path: Path) -> None:
    study = tmp_path / "report"
    assert report.main([str(finished), "--out", str(study)]) == 0
    page = "".join(path.read_text("utf-8") for path in study.rglob("*.md"))
    assert "Top-1 test accuracy (%) of the masked tokens" in page
    model = mrl_jax.load(finished)
    z = model.encode(["wa wb wc", "wd"], dim=8)
    assert z.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    with pytest.raises(mrl_jax.system.errors.UserError, match="trained without classes: it has no classifier"):
        model.classifiers()


@pytest.mark.slow
def test_an_exported_run_is_fine_tuned_from_its_folder(finished: Path, tmp_path: Path, texts: dict[str, Path]) -> None:
    """The way from hidden tokens to classes: export, then `encoder.weights=` that folder."""
    folder = tmp_path / "pretrained"
    assert export.main([str(finished), "--to", "sentence-transformers", str(folder)]) == 0
    tuned = [
        *("data=files", f"data.train={texts['train']}", f"data.test={texts['test']}", "encoder=transformer"),
        *(f"encoder.weights={folder}", "width=32", "nesting_dims=[8,32]", "arms=[mrl]", "trainer.steps=1", "name=fine"),
        *("recipe=none", "trainer.batch_size=32", "trainer.evaluations=1", "optimizer.learning_rate=1e-12"),
    ]
    assert train.main([*tuned, f"results_dir={tmp_path}", "run=a"]) == 0
    before, after = mrl_jax.load(finished), mrl_jax.load(tmp_path / "fine" / "a")
    sample = ["wa wb wc wd", "wj"]
    np.testing.assert_allclose(after.encode(sample), before.encode(sample), atol=1e-5)
    # And once more hidden tokens, from there on.
    again = ["data=texts", f"data.train={texts['train']}", "loss.name=mlm", *tuned[3:]]
    assert train.main([*again, f"results_dir={tmp_path}", "run=b"]) == 0


REFUSED = {
    "encoder=bag": "loss.name=mlm predicts tokens from their states, which encoder=bag lacks; use transformer",
    "encoder.projection=true": "encoder.projection=true is not for loss.name=mlm: tokens are predicted from their st",
    "encoder.hidden=64": "width=32 is not allowed with loss.name=mlm; encoder.hidden=64 needs width=64",
    "arms=[ff,pca]": "arms=pca is not allowed with loss.name=mlm; it needs loss.name=cross_entropy or",
    "arms=[mrl_e]": "arms=mrl_e is not allowed with loss.name=mlm; it needs loss.name=cross_entropy",
    "loss.mask_rate=0.9": "loss.mask_rate=0.9 is not allowed; more than 0 and at most 0.5",
    "loss.shortlist=1": "loss.shortlist=1 is not allowed with loss.name=mlm; it needs 0",
    "loss.name=cross_entropy": "loss.name=cross_entropy does not fit data=train, texts; use mlm",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_it_cannot_do_is_refused_in_a_sentence(
    word: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [other for other in words if not (word == "encoder=bag" and other.startswith("encoder"))]
    others = [other for other in others if not (word.startswith("loss.name") and other.startswith("arms"))]
    assert train.main([*others, word, f"results_dir={tmp_path}"]) == 2
    assert REFUSED[word] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_texts_of_classes_are_read_without_their_labels(texts: dict[str, Path], tmp_path: Path) -> None:
    command = [
        *("data=files", f"data.train={texts['train']}", f"data.test={texts['test']}", "loss.name=mlm", *TRANSFORMER),
        *("trainer.steps=1", "trainer.batch_size=32", "trainer.evaluations=1", "name=labelled", "run=a"),
    ]
    assert train.main([*command, f"results_dir={tmp_path}"]) == 0
    run = tmp_path / "labelled" / "a"
    assert runs.read_dataset(run)["classes"] == []
    assert report.main([str(run), "--out", str(tmp_path / "report")]) == 0
    assert checkpoint.saved_steps(run / "checkpoints" / "mrl-seed0" / "model")


def test_texts_without_a_token_to_hide_are_left_out_and_named(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "some.txt"
    file.write_text("\n".join([*sentences(50, 3), "[PAD]", "[MASK] [PAD]"]) + "\n", encoding="utf-8")
    command = [*words, f"data.train={file}", "trainer.steps=1", "arms=[mrl]", "trainer.evaluations=1"]
    assert train.main([*command, f"results_dir={tmp_path}", "run=a", "data.validation_fraction=0.3"]) == 0
    shown = capsys.readouterr()
    assert "texts have no token to predict and are left out" in shown.out + shown.err


def test_a_mask_token_of_a_vocabulary_that_is_not_learnt_is_refused() -> None:
    with pytest.raises(
        mrl_jax.system.errors.UserError, match=r"encoder.mask_token=true is of a vocabulary that is learnt"
    ):
        transformer_settings.check_width(TransformerConfig(weights="minilm", mask_token=True), 384)
