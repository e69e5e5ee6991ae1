"""Small inputs that once went wrong, where their folder lies beside the checkout: each comes out right now."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mrl_jax import encoders, train
from mrl_jax.data.prompts import put
from mrl_jax.encoders.transformer_settings import TransformerConfig
from mrl_jax.runs import read_rows
from mrl_jax.search.__main__ import main as run_search
from mrl_jax.zero_shot.models import pretrained

CASES = Path(__file__).parents[3] / "shared" / "cases"
FOLDERS = sorted(path for path in CASES.glob("*") if path.is_dir())


def metric(name: str, dim: int, results: Path, *words: str) -> float:
    """A metric of the test split of a run with these words."""
    assert train.main([*words, f"results_dir={results}", "name=case", "run=one"]) == 0
    rows = read_rows(results / "case" / "one" / "evaluation.csv")
    return next(row.value for row in rows if (row.metric, row.dim, row.split) == (name, dim, "test"))


def files(case: Path, train_file: str = "train.jsonl", test_file: str = "test.jsonl") -> list[str]:
    return [f"data.train={case / train_file}", f"data.test={case / test_file}", "evaluation.neighbours=false"]


def unspaced_script(case: Path, scratch: Path) -> None:
    assert metric("linear_top1", 64, scratch, "data=files", *files(case), "evaluation.refit=null") == 1


def folder_of_collection(case: Path, scratch: Path) -> None:
    words = ["data=beir", f"data.path={case / 'data'}", "loss.name=info_nce", "trainer.steps=20"]
    words += ["width=16", "nesting_dims=[8,16]", "encoder.min_documents=1"]
    assert metric("ndcg@10", 16, scratch, *words) > 0


def features(case: Path, scratch: Path) -> None:
    for test in case.glob("*_te*.npz"):
        learnt = next(case.glob(f"{test.name.partition('_te')[0]}_tr*.npz"))
        (x, y), (x_test, y_test) = (np.load(file).values() for file in (learnt, test))
        textbook = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y)
        words = ["data=features", "encoder=mlp", *files(case, learnt.name, test.name), "evaluation.refit=null"]
        ours = metric("linear_top1", 256, scratch / test.stem, *words)
        assert ours >= textbook.score(x_test, y_test) - 0.01, test.name


def few_answers(case: Path, scratch: Path) -> None:
    words = ["data=pairs", *files(case), f"data.validation={case / 'validation.jsonl'}", "loss.name=info_nce"]
    words += ["width=16", "nesting_dims=[8,12,16]", "trainer.steps=100", "encoder.min_documents=1"]
    assert metric("recall@1", 8, scratch, *words) == 1


def delta_encoding(case: Path, scratch: Path) -> None:
    words = ["data=files", *files(case, "train.parquet", "train.parquet"), "trainer.steps=20"]
    assert metric("linear_top1", 256, scratch, *words) > 0


def list_column(case: Path, scratch: Path) -> None:
    pair = {"anchor": "another quick fox", "positive": "a sleeping dog"}
    (scratch / "test.jsonl").write_text(json.dumps(pair | {"negative": "a cat"}) + "\n")
    words = ["data=pairs", *files(case, "train.parquet", str(scratch / "test.jsonl")), "encoder.min_documents=1"]
    assert metric("recall@10", 256, scratch, *words, "trainer.steps=20", "loss.name=info_nce") > 0


def embed(folder: Path, texts: list[str]) -> np.ndarray:
    encoder = TransformerConfig(weights=str(folder))
    reader = encoders.fit(encoder, "made", "text", texts)
    inputs = reader(texts)
    shapes = {name: x.shape[1:] for name, x in inputs.items()}
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    module = encoders.create(encoder, inputs=shapes, vocabulary=reader.vocabulary, width=width, rngs=nnx.Rngs(0))
    return np.asarray(module(inputs))


def default_prompt(case: Path, scratch: Path) -> None:
    plain = shutil.copytree(case / "model", scratch / "plain")
    settings = json.loads((plain / "config_sentence_transformers.json").read_text())
    prompt = settings["prompts"][settings.pop("default_prompt_name")]
    (plain / "config_sentence_transformers.json").write_text(json.dumps(settings))
    texts = ["a quick fox", "lazy dogs sleep"]
    described = encoders.prompts(TransformerConfig(weights=str(case / "model")), None)
    assert described.of() == prompt
    z = embed(plain, [prompt + text for text in texts])
    np.testing.assert_allclose(embed(case / "model", put(described.of(), texts)), z, atol=1e-6)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    np.testing.assert_allclose(pretrained(str(case / "model")).encode(texts), unit, atol=1e-6)


def pooling_folder(case: Path, scratch: Path) -> None:
    usual = shutil.copytree(case / "model", scratch / "usual")
    (usual / "pooling").rename(usual / "1_Pooling")
    modules = (usual / "modules.json").read_text()
    (usual / "modules.json").write_text(modules.replace('"pooling"', '"1_Pooling"'))
    mean = shutil.copytree(usual, scratch / "mean")
    settings = json.loads((mean / "1_Pooling" / "config.json").read_text())
    assert "cls" in json.dumps(settings)
    settings = {"embedding_dimension": json.loads((mean / "config.json").read_text())["hidden_size"]}
    (mean / "1_Pooling" / "config.json").write_text(json.dumps(settings | {"pooling_mode": "mean"}))
    z, first, other = (embed(folder, ["a quick fox"]) for folder in (case / "model", usual, mean))
    np.testing.assert_array_equal(z, first)
    assert not np.allclose(z, other, atol=1e-3)


def lower_case(case: Path, scratch: Path) -> None:
    z = embed(case / "model", ["The QUICK Fox", "the quick fox"])
    np.testing.assert_allclose(z[0], z[1], atol=1e-6)


def copies_in_ivf(case: Path, scratch: Path) -> None:
    words = ["data=files", *files(case, "cls_train.jsonl", "cls_test.jsonl"), "width=30", "nesting_dims=[7,14,30]"]
    metric("linear_top1", 30, scratch, *words, "trainer.steps=30", "evaluation.refit=null", "recipe=none")
    index = str(scratch / "index")
    build = ["build", str(scratch / "case" / "one"), str(case / "corpus_dup.jsonl"), "--index", index]
    assert run_search([*build, "--kind", "faiss-ivf", "--prefix", "7"]) == 0
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert run_search(["query", index, "w39 w19 w38 w6 w50", "--k", "5"]) == 0
    lines = said.getvalue().splitlines()
    assert len(lines) >= 5
    assert "d1092" in lines[0]


CHECKS: dict[str, Callable[[Path, Path], None]] = {
    "bag-unspaced-script": unspaced_script,
    "beir-empty-document": folder_of_collection,
    "beir-qrels-unknown-id": folder_of_collection,
    "default-prompt": default_prompt,
    "faiss-ivf-returns-nothing": copies_in_ivf,
    "features-uint8": features,
    "features-unscaled": features,
    "pairs-few-answers": few_answers,
    "parquet-delta-encoding": delta_encoding,
    "parquet-list-column": list_column,
    "pooling-folder": pooling_folder,
    "tokenizer-config-lowercase": lower_case,
}
ELSEWHERE = {
    "faiss-hnsw-duplicates": "tests/search/test_distinct.py, as the case is a script",
    "faiss-pq-dims": "tests/search/test_backends.py, as the case has no files",
}


@pytest.mark.slow
@pytest.mark.skipif(not FOLDERS, reason="there is no folder of cases beside the checkout")
@pytest.mark.parametrize("case", FOLDERS, ids=lambda path: path.name)
def test_a_case_comes_out_right(case: Path, tmp_path: Path) -> None:
    if case.name not in CHECKS:
        pytest.skip(ELSEWHERE.get(case.name, "no check was written for it"))
    CHECKS[case.name](case, tmp_path)
