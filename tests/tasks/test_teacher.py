"""A teacher: its vectors find their texts, reach the loss in the order of the embeddings, and are learnt from."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import model_folders
import numpy as np
import pytest
from helpers import random_pair, write_table

import mrl_jax
from mrl_jax import arms, config, encoders, train
from mrl_jax.config import LossConfig, OptimizerConfig
from mrl_jax.data import PairDataset, Pairs
from mrl_jax.encoders import huggingface
from mrl_jax.encoders.mlp import MLPConfig
from mrl_jax.losses import Guide, nested_distillation, nested_info_nce
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import sha256_of
from mrl_jax.tasks import description, teacher
from mrl_jax.tasks.pair_objectives import ContrastiveObjective
from mrl_jax.training.batches import Examples, PairExamples
from mrl_jax.training.step import TrainStep

TEXTS = ["a", "b\n", "ü"]
RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.normal(size=(4, 5)).astype(np.float32)
PAIRS_OF_A_FILE = ["name=x", "data=pairs", "data.train=a", "data.test=b", "loss.name=info_nce", "arms=[mrl]"]


def npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_a_file_may_have_more_texts_in_any_order(tmp_path: Path) -> None:
    file = npz(tmp_path / "t.npz", texts=np.array(["ü", "x", "b\n", "a"]), vectors=VECTORS)
    np.testing.assert_array_equal(teacher.read("loss.teacher", file, TEXTS), VECTORS[[3, 2, 0]])


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"vectors": VECTORS}, "has no array texts; its arrays are vectors"),
        ({"texts": np.array(TEXTS), "vectors": VECTORS}, r"texts <U2 \[3\], vectors float32 \[4, 5\] are not allowed"),
        ({"texts": np.arange(4), "vectors": VECTORS}, r"texts int64 \[4\], vectors .* are not allowed; str \[n\]"),
        (
            {"texts": np.array(["ü", "x", "b", "a"]), "vectors": VECTORS},
            r"has no vector of 1 of the 3 training texts, the first: 'b\\n'",
        ),
        ({"texts": np.array([*TEXTS, "x"]), "vectors": VECTORS * np.float32(np.nan)}, "length is not a finite float32"),
        ({"texts": np.array([*TEXTS, "x"]), "vectors": VECTORS + np.float32(1e30)}, "length is not a finite float32"),
        ({"texts": np.array([*TEXTS, "x"]), "vectors": np.full((4, 5), 1e200)}, "length is not a finite float32"),
        ({"texts": np.array([*TEXTS, "x"]), "vectors": VECTORS[:, :0]}, r"vectors float32 \[4, 0\] are not allowed"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_a_sentence(arrays: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        teacher.read("loss.teacher", npz(tmp_path / "t.npz", **arrays), TEXTS)


def test_a_damaged_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    whole = npz(tmp_path / "whole.npz", texts=np.array([*TEXTS, "x"]), vectors=VECTORS).read_bytes()
    file = tmp_path / "t.npz"
    for content in (whole[: len(whole) // 2], b"PK not", b"", whole.replace(b"descr", b"dexcr")):
        file.write_bytes(content)
        with pytest.raises(UserError, match="is not a readable"):
            teacher.read("loss.teacher", file, TEXTS)
    np.save(tmp_path / "t.npy", VECTORS)
    (tmp_path / "t.npy").rename(file)
    with pytest.raises(UserError, match="holds a single array, not a"):
        teacher.read("loss.teacher", file, TEXTS)


@pytest.mark.parametrize(("parts", "roles"), [(1, {"teacher"}), (2, {"teacher", "guide"}), (1, {"guide"})])
def test_the_loss_of_a_step_compares_each_text_with_its_own_vector(parts: int, roles: set[str]) -> None:
    """Anchors, positives and negatives, the batch in one or two parts: the gradient is that of the formula."""
    table = Examples({"features": RANDOM.normal(size=(30, 5)).astype(np.float32)}, np.zeros(30))
    vectors, seen = RANDOM.normal(size=(2, 30, 7)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    given = {role: z for role, z in (("teacher", vectors), ("guide", seen)) if role in roles}
    pairs = RANDOM.integers(0, 30, (8, 3)).astype(np.int32)
    options = LossConfig("info_nce", teacher_weight=2.0, guide_margin=0.1, mask_known=False)
    objective, encoder = ContrastiveObjective((4, 8), 3, options), MLPConfig(hidden=(), dropout=0.0)
    sgd = OptimizerConfig(name="sgd", learning_rate=1.0, schedule="constant", weight_decay=0.0, momentum=0.0)
    program = TrainStep(encoder, {"features": (5,)}, 0, 8, objective, sgd, 1, accumulate=parts)
    (arm,) = arms.expand(["mrl"], program.dims)
    start = program.init(0)
    batch = PairExamples(table, pairs, None, chunks=parts, **given).take(np.arange(8))
    assert given.keys() <= batch.keys()

    def wanted(params: dict) -> jax.Array:
        z = program.embed(start.model._replace(params=params), {"features": jnp.asarray(table.inputs["features"])})
        queries, documents = pairs[:, 0], pairs[:, 1:].T.ravel()
        taught = nested_distillation(
            z[queries], z[documents], (4, 8), [1.0, 1.0], 0.05, vectors[queries] @ vectors[documents].T
        )
        guide = Guide(seen[queries], seen[documents], 0.1) if "guide" in roles else None
        own, _ = nested_info_nce(z[queries], z[documents], (4, 8), [1.0, 1.0], guide=guide)
        return own + 2 * taught[0] if "teacher" in roles else own

    gradient = jax.jit(jax.grad(wanted))(start.model.params)
    end, _ = jax.jit(program.step)(program.init(0), batch, arm.row(program.kinds), jax.random.key(0))
    for g, before, after in zip(*map(jax.tree.leaves, (gradient, start.model.params, end.model.params)), strict=True):
        np.testing.assert_allclose(before - after, g, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_student_learns_the_similarities_of_its_teacher_alone(tmp_path: Path) -> None:
    """At every prefix, from a teacher that knows nothing of the pairs."""
    rng = np.random.default_rng(0)
    rows = [random_pair(rng) for _ in range(60)]
    file = write_table(tmp_path / "train.jsonl", rows)
    test = write_table(tmp_path / "test.jsonl", [random_pair(rng) for _ in range(5)])
    texts = sorted({text for row in rows for text in row.values()})
    of_word = {word: rng.normal(size=4) for text in texts for word in text.split()}
    vectors = np.array([np.mean([of_word[word] for word in text.split()], axis=0) for text in texts])
    npz(tmp_path / "t.npz", texts=np.array(texts), vectors=vectors)
    words = ["data=pairs", f"data.train={file}", f"data.test={test}", "name=t", "width=8", "nesting_dims=[4,8]"]
    words += [
        "arms=[mrl]",
        "loss.name=info_nce",
        f"loss.teacher={tmp_path / 't.npz'}",
        "loss.supervised=false",
        "loss.temperature=0.5",
    ]
    words += ["encoder=static", "encoder.vocabulary=600", "trainer.steps=150", "trainer.batch_size=48", "run=a"]
    words += ["optimizer.learning_rate=0.05", "trainer.evaluations=1", f"results_dir={tmp_path}"]
    assert train.main([*words, "evaluation.interpolated=false"]) == 0
    model = mrl_jax.load(tmp_path / "t" / "a")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for dim in (4, 8):
        z = model.encode(texts, dim)
        assert np.corrcoef((z @ z.T).ravel(), (vectors @ vectors.T).ravel())[0, 1] > 0.7


def taught_by(name: object, *more: str) -> config.Config:
    return config.from_command_line([*PAIRS_OF_A_FILE, f"loss.teacher={name}", *more])


def vectors_of(made: config.Config, texts: list[str]) -> np.ndarray:
    return teacher.vectors(made, texts)["teacher"]


def test_vectors_of_a_model_are_computed_once_and_have_unit_length(tmp_path: Path) -> None:
    model_folders.make(tmp_path / "model")
    made = taught_by(tmp_path / "model", f"data.cache_dir={tmp_path}")
    texts = [text for text in model_folders.TEXTS if text][:4]
    first = vectors_of(made, texts)
    (stored,) = (tmp_path / "streamed").glob("teacher-*/vectors.npy")
    time = stored.stat().st_mtime_ns
    np.testing.assert_array_equal(vectors_of(made, texts), first)
    assert stored.stat().st_mtime_ns == time
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(vectors_of(made, texts[:1]), first[:1], atol=1e-5)
    model_folders.prompts("q", q="the fox ")(tmp_path / "model")
    after = vectors_of(made, texts)
    model_folders.prompts(None, q="the fox ")(tmp_path / "model")
    np.testing.assert_allclose(after, vectors_of(made, ["the fox " + text for text in texts]), atol=1e-5)
    assert np.abs(after - first).max() > 0.01
    stored.write_bytes(stored.read_bytes()[:100])
    model_folders.prompts(None, query="", document="")(tmp_path / "model")
    with pytest.raises(UserError, match=r"is damaged .*; delete it"):
        vectors_of(made, texts)


PAIRS = Pairs(TEXTS, np.array([[0, 1], [1, 2]], np.int32))
DATA = PairDataset("made", "text", PAIRS, PAIRS, PAIRS)


def static(folder: Path) -> None:
    model_folders.set_modules(("", "StaticEmbedding"))(folder)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("none.npz", None, r"none\.npz: there is no such file"),
        ("wordllama", None, "loss.teacher=wordllama is a table of token vectors, .*; a teacher is a transformer"),
        ("model", static, "loss.teacher=.*model is a table of token vectors, .*; a teacher is a transformer"),
        ("nowhere/in/particular", None, "loss.teacher=.*: there is no such folder"),
        (
            "model",
            model_folders.both(model_folders.prompts("q", q="query: "), model_folders.pool(include_prompt=False)),
            "loss.teacher=.*model puts 'query: ' before texts and leaves it out of the pooling",
        ),
    ],
)
def test_a_teacher_that_cannot_be_one_is_refused_before_anything_is_computed(
    name: str, change: Callable[[Path], None] | None, said: str, tmp_path: Path
) -> None:
    model_folders.make(tmp_path / "model")
    if change is not None:
        change(tmp_path / "model")
    with pytest.raises(UserError, match=said):
        teacher.check(taught_by(name if name == "wordllama" else tmp_path / name), DATA)


def test_a_run_is_known_by_its_teacher_and_not_by_the_last_digits_of_its_vectors(tmp_path: Path) -> None:
    def describe(*more: str) -> dict:
        made = config.from_command_line([*PAIRS_OF_A_FILE, "encoder=static", "encoder.vocabulary=300", *more])
        reader = encoders.fit(made.encoder, "made", "text", TEXTS)
        return description.describe(made, DATA, reader, description.read_splits(made, DATA, reader))

    alone, of_file, of_model = describe(), tmp_path / "t.npz", tmp_path / "model"
    np.savez(of_file, texts=np.array(TEXTS), vectors=VECTORS[:3])
    model_folders.make(of_model)
    taught = describe(f"loss.teacher={of_file}")
    assert taught == alone | {"teacher": sha256_of(of_file)}
    assert describe(f"loss.guide={of_file}") == alone | {"guide": sha256_of(of_file)}
    of_words = [f"loss.teacher={of_model}", f"data.cache_dir={tmp_path}"]
    again = describe(*of_words)
    assert again == alone | {"teacher": huggingface.identity(of_model)}
    (stored,) = (tmp_path / "streamed").glob("teacher-*/vectors.npy")
    np.save(stored, np.load(stored) + np.float32(1e-6))
    assert describe(*of_words) == again
    (tmp_path / "dataset.json").write_text(description.to_json(taught))
    description.refuse_other_data(tmp_path, taught)
    with pytest.raises(UserError, match="resume=true: the teacher is no longer that of"):
        description.refuse_other_data(tmp_path, again)


@pytest.mark.parametrize(
    ("key", "role"),
    [("loss.teacher_weight=2", "teacher"), ("loss.supervised=false", "teacher"), ("loss.guide_margin=0.1", "guide")],
)
def test_keys_of_a_teacher_or_a_guide_need_one(key: str, role: str) -> None:
    with pytest.raises(UserError, match=f"{key} is not allowed without a {role}; it needs loss.{role}="):
        config.from_command_line([*PAIRS_OF_A_FILE, key])


def test_a_guide_needs_the_loss_that_it_guides_and_is_checked_as_a_teacher_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss.guide is not allowed with loss.supervised=false"):
        taught_by("a.npz", "loss.guide=b.npz", "loss.supervised=false")
    with pytest.raises(UserError, match=r"loss.guide_margin=3\.0 is not allowed; -2 ≤ value ≤ 2"):
        config.from_command_line([*PAIRS_OF_A_FILE, "loss.guide=b.npz", "loss.guide_margin=3"])
    for name, said in (("no.npz", "there is no such file"), ("wordllama", "a guide is a transformer")):
        with pytest.raises(UserError, match=f"loss.guide=.*{name}.*{said}"):
            teacher.check(config.from_command_line([*PAIRS_OF_A_FILE, f"loss.guide={name}"]), DATA)
    file = npz(tmp_path / "t.npz", texts=np.array(TEXTS), vectors=VECTORS[:3])
    made = config.from_command_line([*PAIRS_OF_A_FILE, f"loss.guide={file}", f"loss.teacher={file}"])
    found = teacher.vectors(made, TEXTS)
    assert found["guide"] is found["teacher"]
