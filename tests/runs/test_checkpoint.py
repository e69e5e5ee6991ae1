"""Checkpoints come back to the bit, or a sentence says which file is damaged."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from mrl_jax.runs import checkpoint
from mrl_jax.system.errors import UserError


def tree(seed: int = 0, width: int = 16) -> dict[str, Any]:
    """Parameters as a list, in several types, with the state of an optimiser."""
    rng = np.random.default_rng(seed)
    params = {
        "kernel": [jnp.float32(rng.normal(size=(4, width))), jnp.float32(rng.normal(size=(8, width)))],
        "narrow": jnp.bfloat16(rng.normal(size=(3, width))),
        "count": jnp.int32(seed + 7),
        "empty": {},
    }
    floats = {"kernel": params["kernel"]}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(0.0, 1.0, 9)))
    state = optimizer.init(floats)
    _, state = optimizer.update(floats, state, floats)
    return {"params": params, "optimizer": state}


def assert_same_bits(first: Any, second: Any) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints of steps 5 and 12."""
    folder = tmp_path_factory.mktemp("original")
    checkpoint.save(folder, 5, tree(5), {"epoch": 1})
    checkpoint.save(folder, 12, tree(12), {"epoch": 2})
    return folder


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Path:
    """A copy of those that may be damaged."""
    subprocess.run(["cp", "-r", original, tmp_path / "saved"], check=True)
    return tmp_path / "saved"


def largest_file(folder: Path) -> Path:
    return max((p for p in (folder / "arrays").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


# --- whole --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_to_the_bit_with_its_meta(original):
    assert checkpoint.saved_steps(original) == [5, 12]
    for step, epoch in ((5, 1), (12, 2)):
        loaded, meta = checkpoint.load(original, step, tree())
        assert_same_bits(loaded, tree(step))
        assert meta == {"epoch": epoch}


def test_shapes_are_enough_to_load_by(original):
    loaded, _ = checkpoint.load(original, 12, jax.eval_shape(tree))
    assert_same_bits(loaded, tree(12))


def test_the_newest_two_are_kept(saved):
    checkpoint.save(saved, 30, tree(30), {})
    assert checkpoint.saved_steps(saved) == [12, 30]
    assert_same_bits(checkpoint.load(saved, 12, tree())[0], tree(12))
    checkpoint.save(saved, 31, tree(31), {}, keep=1)
    assert checkpoint.saved_steps(saved) == [31]


def test_saving_a_step_again_replaces_it(saved):
    checkpoint.save(saved, 12, tree(99), {"epoch": 3})
    loaded, meta = checkpoint.load(saved, 12, tree())
    assert_same_bits(loaded, tree(99))
    assert meta == {"epoch": 3}


def test_what_a_killed_process_left_behind_is_no_checkpoint_and_goes_with_the_next_save(saved):
    partial = saved / ".step-00000020.partial"
    subprocess.run(["cp", "-r", saved / "step-00000012", partial], check=True)
    (partial / "manifest.json").unlink()
    assert checkpoint.saved_steps(saved) == [5, 12]
    checkpoint.save(saved, 21, tree(21), {})
    assert sorted(p.name for p in saved.iterdir()) == ["step-00000012", "step-00000021"]


def test_a_folder_that_is_not_there_has_no_steps(tmp_path):
    assert checkpoint.saved_steps(tmp_path / "nowhere") == []


def test_every_file_of_a_checkpoint_is_in_its_manifest(original):
    folder = original / "step-00000012"
    manifest = json.loads((folder / "manifest.json").read_text())
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert present == {*manifest["files"], "manifest.json"}
    assert manifest["step"] == 12


# --- damaged ------------------------------------------------------------------------------------------------------


def test_a_single_flipped_bit_is_noticed_and_its_file_named(saved):
    file = largest_file(saved / "step-00000012")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    name = str(file.relative_to(saved / "step-00000012"))
    with pytest.raises(UserError, match=f"step-00000012 is damaged: {name} does not have the SHA-256 sum"):
        checkpoint.load(saved, 12, tree())
    assert_same_bits(checkpoint.load(saved, 5, tree())[0], tree(5))  # the one before is still good


def test_a_truncated_file_is_noticed_and_named(saved):
    file = largest_file(saved / "step-00000012")
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(UserError, match=f"is damaged: {file.relative_to(saved / 'step-00000012')} does not have"):
        checkpoint.load(saved, 12, tree())


def test_a_missing_file_is_noticed_and_named(saved):
    file = largest_file(saved / "step-00000012")
    file.unlink()
    with pytest.raises(UserError, match=f"is damaged: {file.relative_to(saved / 'step-00000012')} is missing"):
        checkpoint.load(saved, 12, tree())


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"step": 12, "meta": {}, "files": {"arr'])
def test_a_missing_or_cut_off_manifest_is_noticed(saved, content):
    manifest = saved / "step-00000012" / "manifest.json"
    if content is None:
        manifest.unlink()
    else:
        manifest.write_text(content)
    with pytest.raises(UserError, match=r"step-00000012 is damaged: manifest\.json is missing or cannot be read"):
        checkpoint.load(saved, 12, tree())


def test_arrays_of_another_shape_are_refused(original):
    with pytest.raises(UserError, match="step-00000012 holds other arrays than this configuration expects"):
        checkpoint.load(original, 12, tree(width=17))


def test_a_tree_with_other_names_is_refused(original):
    other = tree()
    other["params"]["renamed"] = other["params"].pop("narrow")
    with pytest.raises(UserError, match="step-00000012 holds other arrays than this configuration expects"):
        checkpoint.load(original, 12, other)


# --- no space -----------------------------------------------------------------------------------------------------


def test_a_full_disk_while_writing_arrays_is_one_sentence_and_harms_nothing(saved, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", full)
    assert_no_space_harms_nothing(saved)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_fills_up_with_the_manifest_is_one_sentence_and_harms_nothing(saved, monkeypatch, number):
    write_text = Path.write_text

    def full(path, *arguments, **keywords):
        if path.name == "manifest.json":
            write_text(path, '{"step"')
            raise OSError(number, os.strerror(number))
        return write_text(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "write_text", full)
    assert_no_space_harms_nothing(saved)


def assert_no_space_harms_nothing(saved: Path) -> None:
    with pytest.raises(UserError, match=r"no space left for .*step-00000030; what was saved before is kept"):
        checkpoint.save(saved, 30, tree(30), {})
    assert sorted(p.name for p in saved.iterdir()) == ["step-00000005", "step-00000012"]
    for step in (5, 12):
        assert_same_bits(checkpoint.load(saved, step, tree())[0], tree(step))


def test_a_real_limit_on_file_size_is_one_sentence_and_harms_nothing(saved):
    """A process that may not write files above 64 KiB tries to save forty of 160 kB, most of which fail late."""
    script = f"""
import resource, signal, time
from pathlib import Path
import numpy as np, jax.numpy as jnp
from mrl_jax.runs import checkpoint
from mrl_jax.system.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
noise = jnp.asarray(np.random.default_rng(0).normal(size=(40, 40_000)), jnp.float32)
try:
    checkpoint.save(Path({str(saved)!r}), 30, {{f"noise{{i}}": row for i, row in enumerate(noise)}}, {{}})
except UserError as error:
    print(error)
for _ in range(100):  # until the files of the failed save are gone
    if any(path.name.endswith(".partial") for path in Path({str(saved)!r}).iterdir()):
        time.sleep(0.1)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert "no space left for" in done.stdout
    assert "step-00000030" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in saved.iterdir()) == ["step-00000005", "step-00000012"]
    assert_same_bits(checkpoint.load(saved, 12, tree())[0], tree(12))


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*step-00000001: (Not a directory|File exists)"):
        checkpoint.save(tmp_path / "file" / "checkpoints", 1, tree(), {})
