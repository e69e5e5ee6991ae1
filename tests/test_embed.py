"""`python -m mrl_jax.embed`: the rows of `model.encode` in each type and format, in files that go on after a kill."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import write_table

import mrl_jax
from mrl_jax import embed, predict, train
from mrl_jax.data.readers.arrays import check_features
from mrl_jax.model import embedding_model


@pytest.fixture(scope="module")
def inputs(texts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "texts.jsonl"
    rows = [json.loads(line) for line in texts["test"].read_text().splitlines()]
    write_table(path, [{"id": i, "text": row["text"]} for i, row in enumerate(rows)])
    return path


@pytest.fixture(scope="module")
def z(trained: Path, inputs: Path) -> np.ndarray:
    """The first 4 dims by hand, from embeddings of full width."""
    full = mrl_jax.load(trained).embed([json.loads(line)["text"] for line in inputs.read_text().splitlines()])
    return full[:, :4] / np.linalg.norm(full[:, :4], axis=1, keepdims=True)


def read(path: Path) -> np.ndarray:
    """The rows of either format."""
    if path.suffix == ".npy":
        return np.load(path)
    table = pq.read_table(path)
    assert table.column_names == ["id", "embedding"]
    assert table["id"].to_pylist() == [str(i) for i in range(len(table))]
    assert table.schema.field("embedding").type.list_size > 0
    return np.array(table["embedding"].to_pylist(), table.schema.field("embedding").type.value_type.to_pandas_dtype())


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_each_type_and_format_has_the_rows_of_the_model(
    trained: Path, inputs: Path, z: np.ndarray, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "ROWS_AT_ONCE", 32)  # several row groups
    rows = {}
    for dtype in ("float32", "int8", "binary"):
        out = tmp_path / f"{dtype}{suffix}"
        assert embed.main([str(trained), str(inputs), "--dim", "4", "--dtype", dtype, "--out", str(out)]) == 0
        rows[dtype] = read(out)
    np.testing.assert_allclose(rows["float32"], z, atol=1e-5)
    assert (rows["float32"].dtype, rows["int8"].dtype, rows["binary"].dtype) == (np.float32, np.int8, np.uint8)
    scale = np.load(tmp_path / "int8.scale.npy")
    assert np.abs(rows["int8"]).max(axis=0).tolist() == [127] * 4
    assert (np.abs(rows["int8"] * scale - z) <= scale / 2 + 1e-6).all()
    bits = check_features(tmp_path, rows["binary"], packed_bits=True)  # as data=features reads them
    np.testing.assert_array_equal(bits[:, :4], z > 0)
    assert not bits[:, 4:].any()
    names = {f"{dtype}{suffix}" for dtype in rows} | {"int8.scale.npy"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_progress_is_counted_by_batches(trained: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow model is no silence for as long as thousands of texts take."""
    texts, seen = [json.loads(line)["text"] for line in inputs.read_text().splitlines()], []

    class Bar(contextlib.nullcontext):
        update = staticmethod(seen.append)

    monkeypatch.setattr(embedding_model.console, "progress", lambda *_, **__: Bar(Bar()))
    mrl_jax.load(trained).encode(texts, batch_size=16)
    assert sum(seen) == len(texts)
    assert max(seen) == 16


@pytest.mark.parametrize(
    ("dtype", "suffix"), [("float32", ".npy"), ("int8", ".npy"), ("binary", ".npy"), ("float32", ".parquet")]
)
def test_a_stopped_file_is_continued_to_the_same_bytes(
    trained: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, suffix: str
) -> None:
    monkeypatch.setattr(embed, "BLOCK_ROWS", 16)
    whole, out, partial = tmp_path / f"whole{suffix}", tmp_path / f"z{suffix}", tmp_path / f"z{suffix}.partial"
    command = [str(trained), str(inputs), "--dtype", dtype, "--out"]
    assert embed.main([*command, str(whole)]) == 0
    with monkeypatch.context() as patched:
        stopped_after(2, patched)
        assert embed.main([*command, str(out)]) == 130
    begun, sidecar = partial.read_bytes(), Path(f"{partial}.json").read_bytes()
    row = 2 if dtype == "binary" else 64
    assert len(begun) == 128 + 32 * row  # 128: of the header
    for size in (127, 128 + 5 * row + 1, len(begun)):
        partial.write_bytes(begun[:size])  # as a kill may leave it: the last row cut
        Path(f"{partial}.json").write_bytes(sidecar)
        assert embed.main([*command, str(out)]) == 0
        assert out.read_bytes() == whole.read_bytes()
        out.unlink()
        assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def stopped_after(blocks: int, patched: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C come when so many blocks are written."""
    real = mrl_jax.EmbeddingModel.encode_stream

    def some(*args: object, **options: object) -> object:
        for number, z in enumerate(real(*args, **options)):
            if number == blocks:
                raise KeyboardInterrupt
            yield z

    patched.setattr(mrl_jax.EmbeddingModel, "encode_stream", some)


def test_a_kill_while_the_format_is_made_costs_no_embedding(
    trained: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [str(trained), str(inputs), "--dtype", "int8", "--out", str(tmp_path / "z.parquet")]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(embed, "write_parquet", interrupt)
        assert embed.main(command) == 130
    monkeypatch.setattr(embed, "BLOCK_ROWS", 80)  # all that is there is whole blocks
    monkeypatch.setattr(mrl_jax.EmbeddingModel, "_embed_chunk", interrupt)
    assert embed.main(command) == 0
    assert read(tmp_path / "z.parquet").shape == (80, 16)


def test_a_fixed_size_arm_has_its_own_width_by_default(trained: Path, inputs: Path, tmp_path: Path) -> None:
    assert embed.main([str(trained), str(inputs), "--arm", "ff8", "--out", str(tmp_path / "z.npy")]) == 0
    assert np.load(tmp_path / "z.npy").shape == (80, 8)


def test_empty_texts_have_rows_and_are_counted(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.txt").write_text("orbit1\n\nzzz\n")
    assert embed.main([str(trained), str(tmp_path / "x.txt"), "--out", str(tmp_path / "z.npy")]) == 0
    np.testing.assert_allclose(np.linalg.norm(np.load(tmp_path / "z.npy"), axis=1), [1, 0, 0], atol=1e-6)
    said = capsys.readouterr().err
    assert "empty texts: 1" in said
    assert "texts without a token that the model knows: 2; their rows are zero" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--arm", "mrl_f"], "arm=mrl_f is unknown"),
        (["--dim", "17"], "--dim=17 is outside 1…16, the width of these embeddings"),
        (["--dim", "0"], "--dim=0 is outside 1…16"),
        (["--dtype", "float16"], "invalid choice: 'float16'"),
        (["--out", "z.csv"], "--out=z.csv is not allowed; a file ending in .npy or .parquet"),
    ],
)
def test_a_mistake_in_the_options_is_said(
    trained: Path, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert embed.main([str(trained), str(inputs), "--out", str(tmp_path / "z.npy"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_standard_input_has_no_ids_for_parquet(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert embed.main([str(trained), "-", "--out", str(tmp_path / "z.parquet")]) == 2
    assert "input=- goes with .npy" in capsys.readouterr().err


def test_only_its_own_beginning_is_continued(
    trained: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(trained), str(inputs), "--out", str(tmp_path / "z.npy")]
    monkeypatch.setattr(embed, "BLOCK_ROWS", 16)
    with monkeypatch.context() as patched:
        stopped_after(1, patched)
        assert embed.main(command) == 130
    for words, what in (
        (["--dim", "4"], "another --dim"),
        (["--dtype", "binary"], "another --dtype"),
        (["--arm", "mrl_e"], "another model"),
    ):
        assert embed.main([*command, *words]) == 2
        assert f"z.npy.partial was begun with {what};" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_of_features_reads_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    features = (rng.normal(size=(120, 6)) + 3 * np.eye(6)[labels]).astype(np.float32)
    np.savez(tmp_path / "x.npz", features=features, labels=labels)
    np.save(tmp_path / "x.npy", features.astype(np.float64))
    command = [
        "data=features", f"data.train={tmp_path / 'x.npz'}", f"data.test={tmp_path / 'x.npz'}", "encoder=mlp",
        "name=vectors", "width=8", "nesting_dims=[4,8]", "trainer.steps=40", f"results_dir={tmp_path}",
        "evaluation.neighbours=false", "evaluation.refit=null",
    ]  # fmt: skip
    assert train.main(command) == 0
    run = str(tmp_path / "vectors")
    for suffix in (".npz", ".npy"):
        out = tmp_path / f"labels{suffix}.jsonl"
        assert predict.main([run, str(tmp_path / f"x{suffix}"), "--dim", "4", "--out", str(out)]) == 0
        names = [json.loads(line)["label"] for line in out.read_text().splitlines()]
        assert names == mrl_jax.load(run).predict(features, dim=4)[0]
        assert np.mean(np.array(names) == labels.astype(str)) > 0.8
    assert embed.main([run, str(tmp_path / "x.npy"), "--out", str(tmp_path / "z.parquet")]) == 0
    assert pq.read_table(tmp_path / "z.parquet")["id"].null_count == 120
    np.save(tmp_path / "narrow.npy", features[:, :5])
    capsys.readouterr()
    for source, said in (
        ("narrow.npy", "features have the shape (120, 5), this model reads [n, 6]"),
        ("-", "input=-: standard input holds texts, and this model reads features"),
        ("x.jsonl", "there is no such file"),
    ):
        source = source if source == "-" else str(tmp_path / source)
        assert predict.main([run, source, "--out", str(tmp_path / "more.jsonl")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "more.jsonl.partial").exists()
    shutil.rmtree(tmp_path / "vectors")
