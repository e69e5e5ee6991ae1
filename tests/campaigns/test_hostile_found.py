"""What fuzzing and thinking like an attacker found, each with the file that did it."""

import dataclasses
import json
import sqlite3
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hostile import COMMANDS, READERS, labelled, made_plan, rows, weights, words, write_table
from made_runs import config as made_config
from made_runs import make_run
from pyarrow import parquet

from mrl_jax import config, data, encoders
from mrl_jax.data.classes import class_names
from mrl_jax.data.readers import records
from mrl_jax.encoders import huggingface
from mrl_jax.encoders.transformer_settings import TransformerConfig
from mrl_jax.report import compare
from mrl_jax.report.gather import gather
from mrl_jax.runs import checkpoint, sweeps
from mrl_jax.search.commands import load_model
from mrl_jax.search.corpus import parse_document, read_lines
from mrl_jax.search.dispatch import search_index
from mrl_jax.search.index import Description, Document, create_index, open_index
from mrl_jax.system.errors import MAX_MESSAGE_CHARACTERS, UserError
from mrl_jax.text import untrusted


def test_an_error_is_one_line_of_bounded_length() -> None:
    """A file may hold a book, line ends and terminal escapes where a name was expected."""
    error = UserError(f"label {'x' * 10**6}\n\x1b[2J\ud800 is unknown")
    assert str(error).isprintable()
    assert len(str(error)) <= MAX_MESSAGE_CHARACTERS
    assert str(error).startswith("label xxx")
    assert str(error).endswith(r"\n\x1b[2J\ud800 is unknown")
    assert str(UserError("a\tb")) == r"a\tb"


def test_whole_number_labels_of_any_length_are_sorted_as_numbers() -> None:
    """int() takes at most 4,300 digits."""
    long = "9" * 5000
    assert class_names(["10", "2", long, "1" + long, "002", "0"]) == ("0", "002", "2", "10", long, "1" + long)


def test_a_column_twice_is_refused(tmp_path: Path) -> None:
    """The second one was read, silently."""
    (tmp_path / "train.csv").write_text("text,label,text\na,b,c\n")
    write_table(tmp_path / "test.csv", rows(4))
    with pytest.raises(UserError, match=r"train\.csv has 2 columns named text"):
        labelled(".csv").read(tmp_path)
    (tmp_path / "train.csv").write_text("text,label,other,other\na,b,c,d\n")  # of those that are not read there may be
    with pytest.raises(UserError, match="does not occur"):
        labelled(".csv").read(tmp_path)


def test_a_parquet_page_that_points_beyond_its_dictionary_is_named(tmp_path: Path) -> None:
    """Whatever bit is flipped: rows, or a sentence. Arrow checks where an index points only when asked."""
    path, texts = tmp_path / "train.parquet", ["orbit", "hockey", "orbit", "kernel"] * 3

    def chosen(path: Path, names: Sequence[str]) -> list[str]:
        if "text" not in names:
            raise UserError(f"{path} has no column text")
        return ["text"]

    parquet.write_table(pyarrow.table({"text": texts}), path, compression="none")
    good, ends = path.read_bytes(), Counter[str]()
    for at in range(len(good)):
        damaged = bytearray(good)
        damaged[at] ^= 1 << (7 - at) % 8
        path.write_bytes(damaged)
        records.size(path)
        try:
            list(records.parquet_records(path, chosen))
        except UserError as error:
            ends["of an index" if "out of bounds" in str(error) else "of something else"] += 1
        else:
            ends["rows"] += 1
    assert ends["rows"] > 0
    assert ends["of an index"] > 0


@pytest.mark.parametrize("point", [0x22000065, 0xFFFFFFFF, 0x110000, 0xD800, 0xDFFF])
def test_a_label_of_numpy_that_is_not_unicode_is_refused(point: int, tmp_path: Path) -> None:
    """NumPy makes a str of it that crashes Python when it is encoded."""
    labels = np.frombuffer(struct.pack("<4I", 65, 66, point, 67), "<U1")
    for kind in ("<U1", ">U1"):
        stored = labels if kind == "<U1" else labels.byteswap().view(kind)
        np.savez(tmp_path / "a.npz", features=np.eye(4), labels=stored)
        with pytest.raises(UserError, match=r"label in row 2 \(from 0\) holds a character that is not in Unicode"):
            data.load(data.DataConfig("features", train=str(tmp_path / "a.npz"), test=str(tmp_path / "a.npz")))


def test_a_corpus_with_half_a_surrogate_pair_or_endless_brackets_is_named(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    for line in (
        '{"_id": "\\ud800", "text": "a"}',
        '{"_id": "a", "text": "\\ud800"}',
        '{"_id": ' + "[" * 10**5,
        '{"_id": 1,',
    ):
        path.write_text('{"_id": "0", "text": "a"}\n' + line)
        with pytest.raises(UserError, match=r"corpus\.jsonl, line 2: "):
            list(read_lines(path))
    for title in ([], ["x"], 5, {"a": 1}):
        if title:
            with pytest.raises(UserError, match="line 3: title is not a string"):
                parse_document(path, 3, {"_id": "a", "text": "b", "title": title})


# ---- tokenizers and weights ------------------------------------------------------------------------------------------


def tokenizer(folder: Path, **changes: Any) -> Path:
    words().make(folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10**6}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "charsmap"),  # a panic in Rust
        ({"pre_tokenizer": split(r"(a+)+$")}, "repeats a group"),  # takes for ever
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(r"(a|aa){1,}\Z")]}}, "repeats a group"),
        ({"normalizer": GROWING}, "makes texts longer"),  # 100 MB of a text of 100 signs
        ({"normalizer": {"type": "Sequence", "normalizers": [GROWING]}}, "makes texts longer"),
        ({"model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 2**32 - 1}, "unk_token": "[UNK]"}}, "token id"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}}, "cannot be read"),  # unknown words
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "q", "continuing_subword_prefix": "##",
                    "max_input_chars_per_word": 100}}, "cannot be read"),
        ({"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}}, "cannot be read"),
        ({"added_tokens": [{"id": 10**6, "content": "zz", "single_word": False, "lstrip": False, "rstrip": False,
                            "normalized": False, "special": True}]}, "idf|token id"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_panics_hangs_or_overflows_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    tokenizer(tmp_path, **changes)
    with pytest.raises(UserError, match=said):
        words().read(tmp_path)


def test_ids_of_a_template_count_as_well(tmp_path: Path) -> None:
    single = [{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    special = {"[X]": {"id": "[X]", "ids": [4 * 10**9], "tokens": ["x"]}}
    path = tokenizer(
        tmp_path,
        post_processor={"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special},
    )
    with pytest.raises(UserError, match="has the token id 4,000,000,000"):
        untrusted.read(path, 100)


def test_a_panic_while_encoding_is_a_sentence(tmp_path: Path) -> None:
    """A pattern without repeated groups can still run into the limit of the regular expressions' library."""
    slow = untrusted.read(tokenizer(tmp_path, pre_tokenizer=split(r"\w*\w*\w*\w*\w*\w*\w*\w*!")))
    with pytest.raises(UserError, match="tokenizer of this model fails"):
        list(untrusted.encode_in_chunks(slow, ["a", "a" * 300 + " !"]))


@pytest.mark.parametrize("text", ["a\ud800", None, 5, b"a"])
def test_what_is_no_text_is_named(text: Any, tmp_path: Path) -> None:
    words().make(tmp_path)
    with pytest.raises(UserError, match=r"texts\[5001\] is not a valid str"):
        list(untrusted.encode_in_chunks(untrusted.read(tmp_path / "tokenizer.json"), [*["a"] * 5001, text]))


@pytest.mark.parametrize("truncation", [None, {"max_length": 0}, {"max_length": 99}, {"max_length": 4, "stride": 9}])
def test_a_run_whose_tokenizer_cuts_elsewhere_than_the_model_is_refused(truncation: Any, tmp_path: Path) -> None:
    """Beyond the table of positions JAX would take the last one, without a word."""
    full = truncation and {"direction": "Right", "strategy": "LongestFirst", "stride": 0, **truncation}
    tokenizer(tmp_path, truncation=full)
    if full and full["max_length"] == 4:
        assert encoders.load(TransformerConfig(max_length=8), tmp_path, "text")(["a b c d e f"])["ids"].shape == (
            1,
            4,
        )
        return
    with pytest.raises(UserError, match="cuts texts at"):
        encoders.load(TransformerConfig(max_length=8), tmp_path, "text")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e400", "1e39", "1" + "0" * 400, "[1]", '"x"', "null"])
def test_a_weight_of_a_word_that_is_no_number_is_refused(value: str, tmp_path: Path) -> None:
    words().make(tmp_path)
    numbers = json.loads((tmp_path / "idf.json").read_text())
    (tmp_path / "idf.json").write_text(json.dumps(numbers).replace(str(numbers[-1]), value, 1))
    with pytest.raises(UserError, match=r"idf\.json is damaged"):
        words().read(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights().make(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored["embeddings.LayerNorm.bias"][1] = value
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"embeddings\.LayerNorm\.bias holds numbers that are not finite"):
        weights().read(tmp_path)


def test_a_tensor_by_two_names_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights().make(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    save_file(stored | {"bert.embeddings.LayerNorm.bias": np.ones(4, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="has a tensor twice"):
        weights().read(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("num_hidden_layers", 10**9), ("hidden_size", 10**30), ("layer_norm_eps", 1e400)]
)
def test_a_model_of_impossible_size_is_refused_before_it_is_built(key: str, value: float, tmp_path: Path) -> None:
    weights().make(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | {key: value}))
    with pytest.raises(UserError, match=f"{key}=.* is not allowed"):
        huggingface.describe(tmp_path)


# ---- configurations, runs, reports -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seeds: 2", "seeds: 1000000000000"),  # a report listed what is missing, seed by seed
        ("width: 16", "width: 1000000000000"),
        ("learning_rate: 0.001", "learning_rate: 1" + "0" * 400),  # too large for a float
        ("name: made", 'name: "a\\0b"'),
        ("name: made", "name: " + "a" * 300),
        ("name: made", "name: &a [*a]"),
        ("name: made", "name: &a x\nrun: *a"),
        ("name: made", "name: made\nname: other"),
        ("name: made", "name: " + "[" * 5000),
        ("encoder:", "encoder: mlp\nother:"),
        ("name: made", "? [a, b]\n: c"),
        ("name: made", "name: 2020-13-45"),
        ("name: made", "name: " + "x" * (1 << 20)),
    ],
)
def test_a_stored_configuration_that_no_run_writes_is_refused(old: str, new: str, tmp_path: Path) -> None:
    text = config.to_yaml(made_config(tmp_path))
    assert old in text
    (tmp_path / "config.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError):
        config.from_yaml(tmp_path / "config.yaml")


def test_aliases_that_stand_for_a_billion_laughs_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 2 has an alias"):
        config.from_yaml(tmp_path / "config.yaml")


TEXTS = (
    "1e-3",
    "1_0.5",
    "nan",
    ".nan",
    ".inf",
    "yes",
    "12:30",
    "0x10",
    "1.",
    "null",
    "~",
    "2020-01-01",
    "=",
    "${x}",
    "é",
    "a: b",
    "# x",
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_configuration_reads_back_as_it_was(text: str, tmp_path: Path) -> None:
    """Now that a loader of our own reads what OmegaConf writes."""
    made = dataclasses.replace(made_config(tmp_path), results_dir=text)
    made = dataclasses.replace(
        made, optimizer=dataclasses.replace(made.optimizer, learning_rate=1.5e-7, clip_norm=1e22)
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml(made))
    assert config.from_yaml(tmp_path / "config.yaml") == made


@pytest.mark.parametrize(
    "word",
    ["evaluation" + "a" * 300 + "=1", "data.path='~nobody/x'", "trainer.steps=1" + "0" * 30, "run=a," + "9" * 5000],
)
def test_an_override_out_of_all_bounds_is_a_sentence(word: str) -> None:
    with pytest.raises(UserError):
        data.load(config.from_command_line(["data=beir", "loss.name=info_nce", word]).data)


def test_a_number_that_python_will_not_read_is_named_in_a_sweep() -> None:
    with pytest.raises(UserError, match=r"cannot read seeds=1,999.*every word is key=value"):
        sweeps.prepare(["seeds=1," + "9" * 5000])


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("evaluation.csv", lambda text: text + text.splitlines()[-1] + "\n", "gives a value twice"),
        ("evaluation.csv", lambda text: text.replace(",4,", ",0,", 1), "is damaged"),  # the axis of dims is logarithmic
        ("evaluation.csv", lambda text: text.replace(",4,", ",-4,", 1), "is damaged"),
        ("evaluation.csv", lambda text: text.splitlines()[0] + "\nmade,mrl,0,4,test,linear_top1,inf\n", "is damaged"),
        ("dataset.json", lambda text: text.replace('"classes": [', '"classes": ["\\ud800", '), "classes"),
        ("dataset.json", lambda text: text.replace('"train": 32', '"train": "many"'), "training examples"),
        ("dataset.json", lambda text: text.replace('"inputs": {}', '"inputs": {"ids": [[1]]}'), "inputs"),
        ("dataset.json", lambda text: "[" * 10**5, "cannot be read"),
    ],
)
def test_a_damaged_run_is_not_reported(name: str, change: Any, said: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, examples=8, arms=("mrl",), seeds=1)
    text = (run / name).read_text()
    (run / name).write_text(change(text))
    assert (run / name).read_text() != text
    with pytest.raises(UserError, match=said):
        gather([run])


@pytest.mark.parametrize(
    ("key", "array", "said"),
    [
        ("test/label", np.full(8, 4), "labels are not those"),
        ("test/label", np.full(8, -1), "labels are not those"),
        ("test/label", np.zeros(8, "U1"), "has no number|does not hold"),
        ("test/linear_top1/4", np.full(8, np.nan), "does not hold a number"),
        ("test/linear_top1/4", np.zeros(7), "does not hold a number"),
        ("test/linear_top1/4", np.zeros((8, 2)), "does not hold a number"),
        ("test/linear_top1/x", np.zeros(8), "cannot be read"),
    ],
)
def test_damaged_predictions_are_named(key: str, array: np.ndarray, said: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, examples=8, arms=("mrl", "ff"), seeds=1)
    path = run / "predictions" / "mrl-seed0.npz"
    with np.load(path) as stored:
        arrays = dict(stored) | {key: array}
    np.savez(path, allow_pickle=False, **arrays)
    with pytest.raises(UserError, match=said):
        compare.compare(gather([run]))


def test_predictions_of_other_examples_than_the_rest_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, examples=8, arms=("mrl",), seeds=2)
    path = run / "predictions" / "mrl-seed1.npz"
    with np.load(path) as stored:
        arrays = {key: array[:-1] for key, array in stored.items()}
    np.savez(path, allow_pickle=False, **arrays)
    gathered = gather([run])
    with pytest.raises(UserError, match="other test examples"):
        gathered.outcomes(gathered.series[0], "linear_top1")


def test_damaged_lines_of_a_log_are_left_out_and_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path, examples=8, arms=("mrl",), seeds=1)
    good = gather([run]).log
    base = {"step": 5, "split": "validation", "member": "mrl-seed0", "arm": "mrl", "seed": 0, "accuracy": {"4": 1.0}}
    bad = [
        {"step": "x"},
        {"step": 10**400},
        {"accuracy": None},
        {"accuracy": {"x": 1}},
        {"accuracy": {"4": "1"}},
        {"arm": []},
    ]
    with (run / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(base | change) + "\n" for change in bad) + "[" * 10**5 + "\n")
    found = gather([run])
    assert found.log == good
    assert any("6 damaged lines of metrics.jsonl" in note for note in found.notes)


def test_a_file_that_is_not_in_the_manifest_is_noticed(tmp_path: Path) -> None:
    """A manifest that lost an entry would let a changed file pass."""
    like = {"a": np.zeros((2, 3), np.float32)}
    where = checkpoint.save(tmp_path, 1, like, {})
    told = json.loads((where / "manifest.json").read_text())
    dropped = told["files"].popitem()[0]

    def write() -> None:  # by somebody who knows what is summed
        told.pop("sha256", None)
        (where / "manifest.json").write_text(json.dumps(told | {"sha256": checkpoint._checksum(told)}))

    write()
    with pytest.raises(UserError, match="is there, but not in its manifest") as error:
        checkpoint.load(tmp_path, 1, like)
    assert dropped in str(error.value)
    told["files"] |= {dropped: "0" * 64, "../../secret": "0" * 64}
    write()
    (tmp_path.parent / "secret").touch()
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load(tmp_path, 1, like)


# ---- indexes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    READERS["index"]().make(tmp_path)
    return tmp_path / "index"


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE documents; CREATE VIEW documents AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c) "
        "SELECT x AS id, x AS text, x AS row FROM c",  # a table that never ends
        "CREATE TRIGGER t AFTER INSERT ON documents BEGIN DELETE FROM documents; END",
        "CREATE TABLE more (x)",
        "UPDATE documents SET row = 10000000 WHERE id = 'd1'",
        "UPDATE documents SET row = -1 WHERE id = 'd1'",
        "UPDATE documents SET row = 'x' WHERE id = 'd1'",
        "UPDATE batches SET start = 1",
        "UPDATE batches SET stop = 5",
        "UPDATE batches SET stop = 'x'",
        "UPDATE batches SET stop = 1000000000000",
        "DELETE FROM about",
        "UPDATE about SET value = x'ff' WHERE key = 'description'",
        "UPDATE about SET value = '[' WHERE key = 'description'",
        "UPDATE about SET value = replace(value, '\"prefix\": 4', '\"prefix\": 5')",
        "UPDATE about SET value = replace(value, '\"width\": 8', '\"width\": -8')",
        'UPDATE about SET value = replace(value, \'"width": 8\', \'"width": "8"\')',
        'UPDATE about SET value = replace(value, \'"kind": "exact"\', \'"kind": []\')',
    ],
)
def test_a_hostile_database_is_refused(sql: str, place: Path) -> None:
    connection = sqlite3.connect(place / "documents.sqlite")
    connection.executescript(sql)
    connection.close()
    with pytest.raises(UserError, match="index"):
        READERS["index"]().read(place.parent)


def test_vectors_that_are_no_numbers_are_refused_though_their_sum_is_right(place: Path) -> None:
    import zlib

    stored = np.fromfile(place / "vectors.f32", np.float32)
    stored[5] = np.nan
    stored.tofile(place / "vectors.f32")
    connection = sqlite3.connect(place / "documents.sqlite")
    with connection:
        connection.execute("UPDATE batches SET crc = ?", (zlib.crc32(stored.tobytes()),))
    connection.close()
    with pytest.raises(UserError, match=r"vectors\.f32 is damaged"):
        READERS["index"]().read(place.parent)


@pytest.mark.parametrize(
    "steps",
    [[[1, 10]], [[4, 1]], "", [[4, True]], [[8, 10]], [[4, 1e400]], [[4]], "x", [[4, 10], [4, 10]], [4], {"4": 10}],
)
def test_a_plan_that_cannot_be_taken_is_refused(steps: Any, place: Path) -> None:
    (place / "plan.json").write_text(made_plan(steps))
    with pytest.raises(UserError, match=r"plan\.json is damaged"):
        READERS["index"]().read(place.parent)


@pytest.mark.parametrize("size", [11, 12, 90, 10**15])
def test_a_shortlist_of_more_documents_than_there_are(size: int, place: Path) -> None:
    """Where a document was deleted, its place in the list was read from before the start of the file."""
    index = open_index(str(place))
    z = index.vectors(np.array([0, 7]))
    found = search_index(index, z, 3, [(4, size)])
    every = search_index(index, z, 3, None)
    index.close()
    np.testing.assert_array_equal(found.rows, every.rows)


def test_an_index_that_names_no_run_is_a_sentence(tmp_path: Path) -> None:
    for run in ("", "a#b", "a#mrl#x"):
        index = create_index(str(tmp_path / f"{run}x"), Description(8, (4, 8), 4, "m", run))
        index.add([Document("a", "b")], np.eye(1, 8, dtype=np.float32))
        with pytest.raises(UserError, match="should name a run, arm and seed"):
            load_model(index, None)
        index.close()


def test_commands_are_valid_samples() -> None:
    for command in COMMANDS:
        assert config.from_command_line(command.split(" ")).width > 0
