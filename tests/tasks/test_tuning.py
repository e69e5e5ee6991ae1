"""Recipes choose what a command leaves open, say so, keep what it sets, and choose the same when a run is resumed."""

import functools
import json
from pathlib import Path

import model_folders
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrl_jax import config, train
from mrl_jax.config import RECIPES
from mrl_jax.config.recipes import KEYS
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import tuning

MINE = ["data=files", "data.train=a.jsonl", "data.test=b.jsonl", "name=mine"]
ROW = RECIPES["bag", "classes"]
ENCODERS = {"pretrained": ["encoder=transformer", "encoder.weights=minilm", "width=384"], "features": []}
LOSSES = {"classes": "cross_entropy", "pairs": "info_nce", "scored pairs": "cosent"}


def command_of(kind: str, learns_from: str) -> list[str]:
    """A command that a row of recipes is for."""
    data = "features" if kind == "features" else "files" if learns_from == "classes" else "pairs"
    words = [f"data={data}", "data.train=a", "data.test=b", "name=mine", f"loss.name={LOSSES[learns_from]}"]
    return [*words, *ENCODERS.get(kind, [f"encoder={kind}"])]


def test_trials_are_the_default_for_own_files_where_no_key_concerned_is_set() -> None:
    assert config.from_command_line(MINE).recipe == "auto"
    assert config.from_command_line([*MINE, "trainer.epochs=3"]).recipe == "fixed"
    assert config.from_command_line(["data=newsgroups"]).recipe == "fixed"
    assert config.from_command_line([*MINE, "encoder=transformer"]).open_keys == ()


@pytest.mark.parametrize("row", RECIPES)
def test_trials_are_the_default_for_every_kind_of_own_data(row: tuple[str, str]) -> None:
    made = config.from_command_line(command_of(*row))
    assert made.recipe == "auto"
    assert config.row_of(made) is RECIPES[row]
    assert {"trainer.epochs", "trainer.batch_size", "optimizer.learning_rate"} <= {*made.open_keys}


@pytest.mark.parametrize("name", ROW)
def test_a_key_of_the_command_wins_over_every_recipe(name: str) -> None:
    asked = config.from_command_line([*MINE, "encoder.word_dropout=0.35", "trainer.batch_size=48", f"recipe={name}"])
    made = config.resolve(asked, name, 10_000)
    assert (made.encoder.word_dropout, made.trainer.batch_size) == (0.35, 48)
    assert made.optimizer.weight_decay == ROW[name].keys["optimizer.weight_decay"]
    assert made.open_keys == ()


def test_a_recipe_has_no_adaptivity_for_sgd(tmp_path: Path) -> None:
    made = config.resolve(config.from_command_line([*MINE, "optimizer=sgd", "recipe=fixed"]), "words", 10_000)
    (tmp_path / "config.yaml").write_text(config.to_yaml(made))
    assert config.from_yaml(tmp_path / "config.yaml") == made


def test_recipe_none_is_the_plain_defaults() -> None:
    made = config.from_command_line([*MINE, "recipe=none"])
    assert (made.optimizer, made.trainer) == (config.OptimizerConfig(), config.TrainerConfig())


@pytest.mark.parametrize("path", sorted((config.CONF / "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_an_experiment_leaves_nothing_to_a_recipe(path: Path) -> None:
    assert config.from_command_line([f"+experiment={path.stem}"]).open_keys == ()


@pytest.mark.parametrize(("row", "name"), [(row, name) for row, recipes in RECIPES.items() for name in recipes])
def test_a_recipe_has_values_that_the_command_line_takes(row: tuple[str, str], name: str) -> None:
    made = config.resolve(config.from_command_line([*command_of(*row), "recipe=fixed"]), name, 1000)
    words = [f"{key}={config.as_word(value)}" for key, value in RECIPES[row][name].keys.items()]
    kind = "features" if name == "frozen" else row[0]
    sizes = [f"{key}={value}" for key, value in config.by_size(kind, 1000, row[1]).items()]
    again = config.from_command_line([*command_of(*row), *words, *sizes, "recipe=none"])
    assert config.values(again, RECIPES[row][name].keys) == RECIPES[row][name].keys
    assert (again.encoder, again.optimizer, again.trainer) == (made.encoder, made.optimizer, made.trainer)


@functools.cache
def mine() -> config.Config:
    return config.from_command_line(MINE)


@given(examples=st.integers(1, 10**7), unit=st.integers(1, 24))
def test_sizes_follow_the_number_of_examples(examples: int, unit: int) -> None:
    made, more = (config.resolve(mine(), "words", count, unit) for count in (examples, 10 * examples))
    assert made.trainer.batch_size % unit == 0
    assert made.trainer.batch_size <= more.trainer.batch_size
    assert 2 <= more.trainer.epochs <= made.trainer.epochs <= 40


def test_pretrained_weights_of_another_width_are_fine_tuned_with_a_projection(tmp_path: Path) -> None:
    model_folders.make(tmp_path)  # of 16 dims
    of = ["data=files", "data.train=a.jsonl", "data.test=b.jsonl", "encoder=transformer", f"encoder.weights={tmp_path}"]
    for width, projection in ((16, False), (8, True)):
        asked = config.from_command_line([*of, f"width={width}", f"nesting_dims=[4,{width}]", "recipe=fine"])
        made = tuning.resolve(asked, "fine", 1000)
        assert (made.encoder.projection, made.encoder.frozen) == (projection, False)
        assert tuning.resolve(asked, "frozen", 1000).encoder.projection
    asked = config.from_command_line([*of, "width=8", "nesting_dims=[4,8]", "recipe=fine", "encoder.projection=false"])
    assert not tuning.resolve(asked, "fine", 1000).encoder.projection


def test_a_recipe_that_there_is_not_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"recipe=wrds is unknown \(did you mean words\?\)"):
        config.from_command_line([*MINE, "recipe=wrds"])
    with pytest.raises(UserError, match=r"width=auto is not allowed"):
        config.from_command_line([*MINE, "width=auto"])
    assert "width" not in {key.rpartition(".")[2] for key in KEYS}


@pytest.mark.parametrize(("words", "name"), [(7, "words"), (29, "words"), (100, "frequent_words")])
def test_a_fixed_recipe_suits_the_length_of_the_texts(words: int, name: str) -> None:
    assert tuning.fitting(ROW, ["word, " * words] * 9) == name
    assert tuning.fitting(ROW, []) in ROW


def test_a_fixed_recipe_fetches_nothing_and_trains_all_of_a_transformer() -> None:
    fixed = {
        row: tuning.fitting(recipes, None if row[0] == "features" else ["a text"]) for row, recipes in RECIPES.items()
    }
    assert fixed["pretrained", "classes"] == fixed["pretrained", "pairs"] == "fine"
    assert fixed["static", "classes"] == fixed["static", "scored pairs"] == "random"
    assert (fixed["features", "classes"], fixed["bag", "pairs"]) == ("dropout", "words")


@given(
    st.dictionaries(st.text(max_size=2), st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1), st.integers(1, 10**6)
)
def test_the_best_recipe_gives_up_less_than_half_its_standard_error(
    tried: dict[str, tuple[float, float]], examples: int
) -> None:
    def reach(most: float) -> float:
        return most - (most * (1 - most) / examples) ** 0.5 / 2

    chosen = tuning.best(tried, examples)
    as_good = {name: scores for name, scores in tried.items() if scores[0] >= reach(max(s[0] for s in tried.values()))}
    assert chosen in as_good
    enough = reach(max(over_all for _, over_all in as_good.values()))
    assert chosen == next(name for name, (_, over_all) in as_good.items() if over_all >= enough)


def test_of_recipes_that_are_alike_the_most_regularised_is_taken() -> None:
    alike = {"strong_decay": (0.76, 0.76), "pairs": (0.74, 0.74), "words": (0.765, 0.765)}
    assert tuning.best(alike, 700) == "strong_decay"
    assert tuning.best(alike, 100_000) == "words"
    decays = [recipe.keys["optimizer.weight_decay"] for recipe in ROW.values() if recipe.words_to_try[0] == 0]
    assert decays == sorted(decays, reverse=True)


@pytest.mark.parametrize("words", [1, 5, 6, 10, 30, 31, 61, 1000])
def test_texts_of_any_length_have_recipes_to_try(words: int) -> None:
    assert 2 <= len(tuning.candidates(ROW, ["word " * words] * 3)) <= 4
    assert len(tuning.candidates(ROW, ["词" * words] * 3)) == len(tuning.candidates(ROW, ["word " * words] * 3))


def test_a_signal_before_the_run_is_begun_says_that_nothing_is_kept(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "_trial", stop)
    assert train.main([*tiny, "recipe=auto", f"results_dir={tmp_path}"]) == 130
    assert "interrupted; start again: no run was begun yet" in capsys.readouterr().err


def test_a_run_tries_recipes_on_validation_and_resumes_with_its_choice(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*tiny, "evaluation.refit=null", "evaluation.neighbours=false", "recipe=auto", f"results_dir={tmp_path}"]
    monkeypatch.setitem(RECIPES, ("bag", "classes"), {name: ROW[name] for name in ("pairs", "words")})
    assert train.main([*command, "run=one"]) == 0
    run = tmp_path / "tiny" / "one"
    record = json.loads((run / "recipe.json").read_text())
    assert record["trials"].keys() == {"pairs", "words"}
    scores = {name: (record["trials"][name], record["trials_over_all_dims"][name]) for name in record["trials"]}
    assert record["recipe"] == tuning.best(scores, 20)
    assert "recipe.json" in (run / "SHA256SUMS").read_text()
    assert f"recipe {record['recipe']} (validation: " in capsys.readouterr().err
    stored = config.from_yaml(run / "config.yaml")
    assert config.values(stored, record["keys"]) == record["keys"]
    assert stored.optimizer.learning_rate == 0.02  # the command's
    before = (run / "evaluation.csv").read_bytes()
    (run / "evaluation.csv").unlink()
    monkeypatch.setattr(tuning, "_trial", lambda *arguments: pytest.fail("tried again"))
    assert train.main([*command, "run=one", "resume=true"]) == 0
    assert (run / "evaluation.csv").read_bytes() == before
    assert train.main([*command, "run=one", "resume=true", "encoder.min_documents=5"]) == 2
    assert "encoder.min_documents" in capsys.readouterr().err
