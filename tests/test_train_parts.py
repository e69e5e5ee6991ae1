"""Runs nested over layers and hidden units: what they measure, parts in use, exports of parts, and mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest

import mrl_jax
from mrl_jax import config, embed, train
from mrl_jax.evaluate.metrics import title
from mrl_jax.export import export
from mrl_jax.runs import read_rows
from mrl_jax.system.errors import UserError

ENCODER = ["encoder=transformer", *(f"encoder.{size}" for size in ("layers=2", "heads=2", "hidden=16"))]
ENCODER += ["encoder.intermediate=24", "encoder.vocabulary=300", "encoder.max_length=16"]


@pytest.mark.slow
def test_a_part_of_a_run_scores_as_it_was_measured_and_is_exported(
    tiny: list[str], texts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    words = [*tiny, *ENCODER, "nesting_layers=[1,2]", "nesting_hidden=[8,24]", "arms=[mrl_e,mrl_dims,ff]"]
    words += ["trainer.steps=12", "evaluation.refit=null", "evaluation.neighbours=false", f"results_dir={tmp_path}"]
    assert train.main([*words, "run=first"]) == 0
    run = tmp_path / "tiny" / "first"
    rows = read_rows(run / "evaluation.csv")
    parts = {(row.arm, row.metric.partition("_linear")[0]) for row in rows if row.metric.endswith("linear_top1")}
    assert parts == {("ff", "linear_top1")} | {
        (arm, part) for arm in ("mrl_e", "mrl_dims") for part in ("linear_top1", "layer1", "hidden8")
    }
    model = mrl_jax.load(run)
    assert model.sizes == ((1, 2), (8, 24))
    assert mrl_jax.load(run, "mrl_dims").sizes == ((2,), (24,))
    lines = [json.loads(line) for line in texts["test"].read_text().splitlines()]
    given, labels = ([line[key] for line in lines] for key in ("text", "label"))
    for name, part in (("layer1", model.part(layers=1)), ("hidden8", model.part(hidden=8))):
        (measured,) = {
            row.value
            for row in rows
            if (row.arm, row.metric, row.dim, row.split) == ("mrl_e", f"{name}_linear_top1", 8, "test")
        }
        assert np.mean([a == b for a, b in zip(part.predict(given, dim=8)[0], labels, strict=True)]) == pytest.approx(
            measured, abs=1e-6
        )
    small = model.part(1, 8)
    z = model.encode(given, layers=1, hidden=8, dim=4)
    np.testing.assert_array_equal(z, small.encode(given, dim=4))
    assert small.fingerprint != model.fingerprint
    assert model.part(2, 24) is model
    for to in ("onnx", "stablehlo", "sentence-transformers"):  # the first two are compared with the part by `export`
        export(run, to, tmp_path / to, layers=1, hidden=8)
    export(run, "onnx", tmp_path / "whole")
    sizes = [(tmp_path / folder / "model.onnx").stat().st_size for folder in ("onnx", "whole")]
    assert sizes[0] < sizes[1]
    stored = json.loads((tmp_path / "sentence-transformers" / "config.json").read_text())
    assert (stored["num_hidden_layers"], stored["intermediate_size"]) == (1, 8)
    again = mrl_jax.model.pretrained.pretrained(str(tmp_path / "sentence-transformers"))
    np.testing.assert_allclose(again.encode(given, dim=4), z, atol=1e-5)
    # A part of pretrained weights as they are, and a run that starts from them.
    more = ["encoder=transformer", f"encoder.weights={tmp_path / 'sentence-transformers'}", "nesting_layers=[1]"]
    assert train.main([*tiny, *more, "nesting_hidden=[4,8]", "trainer.steps=2", "arms=[mrl]", "evaluation.refit=null",
                       f"results_dir={tmp_path}", "run=tuned"]) == 0  # fmt: skip
    capsys.readouterr()
    place = tmp_path / "z.npy"
    command = [str(run), str(texts["test"]), "--layers", "1", "--hidden", "8", "--dim", "4", "--out", str(place)]
    assert embed.main(command) == 0
    np.testing.assert_allclose(np.load(place), z, atol=1e-6)
    model.encode(given[:1], hidden=9)
    assert "hidden=9 was not trained; a loss was taken with hidden=8, 24" in capsys.readouterr().err
    with pytest.raises(UserError, match="layers=3 is not allowed; 1 to 2, all that the encoder has"):
        model.encode(given, layers=3)


def test_a_model_without_layers_has_no_parts(trained: Path) -> None:
    with pytest.raises(UserError, match="hidden=8 is not for encoder=bag, of which no part can be left out"):
        mrl_jax.load(trained).encode(["x"], hidden=8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nesting_layers=[1,3]"], r"nesting_layers=\[1, 3\] is not allowed; ascending .* the last 2, all that"),
        (["nesting_hidden=[24,8]"], r"nesting_hidden=\[24, 8\] is not allowed; ascending .* of hidden units, .* 24"),
        (["nesting_layers=[2]", "encoder=bag"], r"nesting_layers=\[2\] is not allowed with encoder=bag; null, or tra"),
        (["nesting_layers=[2]", "loss.weighting=uncertainty"], "is not allowed with loss.weighting=uncertainty; fixed"),
        (["nesting_layers=[2]", "loss.name=mlm"], "with loss.name=mlm; it needs one source and loss.name=cross"),
        (["arms=mrl_dims"], r"arms=mrl_dims needs nesting_layers=\[…\] or nesting_hidden=\[…\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_nested_is_refused_with_what_is_allowed(tiny: list[str], words: list[str], message: str) -> None:
    encoder = [] if "encoder=bag" in words else ENCODER
    with pytest.raises(UserError, match=message):
        config.from_command_line([*tiny, *encoder, *words])


def test_metrics_of_parts_have_titles() -> None:
    assert title("layer1_linear_top1") == "classifier, top-1 accuracy, after 1 layer"
    assert title("hidden64_ndcg@10") == "search, nDCG@10, with 64 hidden units"
