"""Nothing that is read runs: no pickle, no module that a file names, no resolver, no program for a picture."""

import io
import json
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import labelled, rows, trained, weights, write_table
from made_runs import config as made_config
from made_runs import make_run
from PIL import Image

import mrl_jax
from mrl_jax import config, data
from mrl_jax.data.readers import images
from mrl_jax.encoders import huggingface
from mrl_jax.report.gather import gather
from mrl_jax.runs import checkpoint
from mrl_jax.system import files
from mrl_jax.system.errors import UserError


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


@pytest.fixture
def witness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What hostile code makes; also `import evil` would, from anywhere."""
    path = tmp_path / "ran"
    modules = tmp_path / "modules"
    modules.mkdir()
    for name in ("evil", "modeling_evil", "configuration_evil", "tokenization_evil"):
        (modules / f"{name}.py").write_text(f"import os\nos.mkdir({str(path)!r})\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(str(modules))
    return path


def test_the_bait_works(witness: Path) -> None:
    pickle.loads(pickle.dumps(Evil(witness)))
    assert witness.exists()
    witness.rmdir()
    import evil  # type: ignore[import-not-found]  # noqa: F401

    assert witness.exists()
    del sys.modules["evil"]


def test_no_array_file_is_unpickled(witness: Path, tmp_path: Path) -> None:
    array = np.array([Evil(witness)] * 4, object)
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "a.npz", features=array, labels=array, anchors=array, positives=array)
    (tmp_path / "p.npy").write_bytes(pickle.dumps(Evil(witness)))
    (tmp_path / "p.npz").write_bytes(pickle.dumps(Evil(witness)))
    made = [str(tmp_path / name) for name in ("a.npz", "p.npz", "a.npy", "p.npy")]
    configs = [
        *(data.DataConfig("features", train=name, test=name) for name in made[:2]),
        *(data.DataConfig("features", task="pairs", train=name, test=name) for name in made[:2]),
        *(data.DataConfig("features", train=n, test=n, train_labels=n, test_labels=n) for n in made[2:]),
    ]
    for one in configs:
        with pytest.raises(UserError):
            data.load(one)
    assert not witness.exists()


def test_predictions_of_a_run_are_not_unpickled(witness: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, examples=8, seeds=1, arms=("mrl",))
    path = run / "predictions" / "mrl-seed0.npz"
    np.savez(path, **{"test/label": np.array([Evil(witness)] * 8, object)}, allow_pickle=True)
    with pytest.raises(UserError, match=r"mrl-seed0\.npz cannot be read"):
        gather([run])
    assert not witness.exists()


def test_a_parquet_column_of_a_python_type_is_not_unpickled(witness: Path, tmp_path: Path) -> None:
    """PyArrow did that on reading, before version 14.0.1 (CVE-2023-47248)."""
    name = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Evil(witness)),
    }
    field = pa.field("text", pa.string(), metadata=name)
    table = pa.table([["a", "b"], ["x", "y"]], schema=pa.schema([field, ("label", pa.string())]))
    for part in ("train", "test"):
        pq.write_table(table, tmp_path / f"{part}.parquet")
    found = labelled(".parquet").read(tmp_path)
    assert not witness.exists()
    assert found.test.inputs == ["a", "b"]  # type: ignore[attr-defined]


def test_no_model_folder_runs_code(witness: Path, tmp_path: Path) -> None:
    """What `trust_remote_code` is about: files may name modules, in the folder or installed, and none is imported."""
    reader, folder = weights(), tmp_path / "model"
    folder.mkdir()
    reader.make(folder)
    for name in ("evil", "modeling_evil", "configuration_evil", "tokenization_evil"):
        (folder / f"{name}.py").write_text((tmp_path / "modules" / f"{name}.py").read_text())
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(witness)))
    told = json.loads((folder / "config.json").read_text())
    auto = {"AutoModel": "modeling_evil.Evil", "AutoConfig": "configuration_evil.Evil"}
    told |= {
        "auto_map": auto,
        "trust_remote_code": True,
        "architectures": ["evil.Evil"],
        "custom_pipelines": {"x": "evil"},
    }
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil"]}})
    )
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "type": "evil.Transformer", "path": ""}]))
    reader.read(folder)
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "type": "evil.Evil", "path": ""}]))
    with pytest.raises(UserError, match="module Evil is not supported"):
        huggingface.describe(folder)
    (folder / "modules.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="weights are read from files of safetensors"):
        huggingface.load(folder, huggingface.describe(folder).architecture)
    assert not witness.exists()


def test_no_checkpoint_runs_code(witness: Path, tmp_path: Path) -> None:
    """Every file of Orbax in turn: a pickle, or JSON that names a class. The hashes are those of the hostile files."""
    like = {"a": np.zeros((2, 3), np.float32)}
    where = checkpoint.save(tmp_path / "model", 1, like, {})
    manifest = where / "manifest.json"
    content = json.loads(manifest.read_text())
    names = [*content["files"], "arrays/evil.py"]
    baits = [pickle.dumps(Evil(witness))]
    baits += [json.dumps(dict.fromkeys(("item_handlers", "handler", "pytree_metadata", "class"), "evil.Evil")).encode()]
    for name in names:
        kept = (where / name).read_bytes() if (where / name).exists() else None
        if kept is not None and kept.startswith(b"{"):
            told = json.loads(kept) | {"item_handlers": "evil.Evil", "custom_metadata": {"__reduce__": "evil.Evil"}}
            baits.append(json.dumps(told).encode())
        for bait in baits:
            (where / name).write_bytes(bait)
            sums = {n: files.sha256_of(where / n) for n in names if (where / n).exists()}
            manifest.write_text(json.dumps(content | {"files": sums}))
            try:
                tree, _ = checkpoint.load(tmp_path / "model", 1, like)
                np.testing.assert_array_equal(tree["a"], like["a"])
            except UserError:
                pass
        (where / name).unlink() if kept is None else (where / name).write_bytes(kept)
    assert not witness.exists()


@pytest.mark.parametrize(
    "line",
    [
        "name: !!python/object/apply:os.mkdir ['{}']",
        "name: !!python/object/new:os.mkdir ['{}']",
        "name: !!python/module:evil",
        "name: !!python/name:evil.Evil",
        "_target_: os.mkdir\npath: {}",
        "hydra: {{_target_: os.mkdir, path: {}}}",
    ],
)
def test_no_stored_configuration_runs_code(line: str, witness: Path, tmp_path: Path) -> None:
    text = config.to_yaml(made_config(tmp_path)).replace("name: made", line.format(witness))
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"cannot be read as a configuration|unknown key"):
        config.from_yaml(tmp_path / "config.yaml")
    assert not witness.exists()


def test_a_stored_configuration_is_not_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that came from elsewhere neither learns a secret nor moves its results with the clock."""
    monkeypatch.setenv("A_SECRET", "swordfish")
    for text in (
        "${oc.env:A_SECRET}",
        "${now:%Y}",
        "${oc.decode:'[1]'}",
        "${width}",
        "${hydra:runtime.cwd}",
        "${",
        "${a:",
    ):
        stored = config.to_yaml(made_config(tmp_path)).replace("name: made", f"name: {json.dumps(text)}")
        (tmp_path / "config.yaml").write_text(stored)
        assert config.from_yaml(tmp_path / "config.yaml").name == text
        (tmp_path / "config.yaml").write_text(stored.replace("width: 16", f"width: {json.dumps(text)}"))
        with pytest.raises(UserError) as error:
            config.from_yaml(tmp_path / "config.yaml")
        assert text in str(error.value)
        assert "swordfish" not in str(error.value)


def test_a_run_from_elsewhere_is_loaded_without_its_surroundings(witness: Path, tmp_path: Path) -> None:
    directory = trained(tmp_path)
    for name in ("evil.py", "sitecustomize.py", "mrl_jax.py", "conftest.py"):
        (directory / name).write_text(f"import os\nos.mkdir({str(witness)!r})\n")
    (directory / "model.pkl").write_bytes(pickle.dumps(Evil(witness)))
    assert mrl_jax.load(directory).encode(["orbit"]).shape == (1, 8)
    assert not witness.exists()


def test_a_picture_starts_no_program(witness: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives EPS to Ghostscript."""
    tool = tmp_path / "bin" / "gs"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\nmkdir {witness}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, format="EPS")
    with pytest.raises(UserError, match="is not a JPEG or PNG"):
        images.decode(out.getvalue(), images.Geometry(4, 4, 3))
    assert not witness.exists()


# Of functions, from a process to those that it has started itself, over pipes that nobody else has.
TO_OWN_PROCESSES = {"decoders.py"}


def test_no_source_line_asks_for_code() -> None:
    forbidden = re.compile(
        r"\bpickle\b(?!=)|allow_pickle=True|torch\.load|joblib\.load|\bexec\(|(?<![.\w])eval\(|yaml\.(unsafe|full)_load|yaml\.Loader"
        r"|trust_remote_code=True|os\.system|shell=True|extractall"
    )
    folder = Path(mrl_jax.__file__).parent
    found = [
        f"{path.name}:{number}"
        for path in folder.rglob("*.py")
        if path.name not in TO_OWN_PROCESSES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if forbidden.search(line)
    ]
    assert found == []


def test_jsonl_with_a_pickle_inside_is_text(witness: Path, tmp_path: Path) -> None:
    row = {"text": pickle.dumps(Evil(witness)).decode("latin-1"), "label": "!!python/object/apply:os.mkdir"}
    for part in ("train", "test"):
        write_table(tmp_path / f"{part}.jsonl", [*rows(4), row])
    found = labelled(".jsonl").read(tmp_path)
    assert row["label"] in found.classes  # type: ignore[attr-defined]
    assert not witness.exists()
