"""Every entry of `ENCODERS` does what the table promises; a new encoder has to pass these tests."""

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jax
import numpy as np
import pytest
from flax import nnx

from mrl_jax import encoders
from mrl_jax.config import Config
from mrl_jax.data import DataConfig, Dataset, Split, StreamedTexts
from mrl_jax.encoders import ENCODERS, EncoderConfig
from mrl_jax.export import FORMATS, check_format
from mrl_jax.export.onnx import assemble
from mrl_jax.model import EmbeddingModel
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import train_step
from mrl_jax.training import disk_examples
from mrl_jax.training.step import Weights

WIDTH = 8
SMALL: dict[str, dict[str, Any]] = {  # settings that make an encoder small enough for a test
    "bag": {},
    "transformer": {
        "layers": 1, "hidden": WIDTH, "heads": 2, "intermediate": 8, "vocabulary": 270, "max_length": 12,
    },
    "static": {"vocabulary": 270, "max_length": 12},
    "convnet": {"channels": 2},
    "vit": {"image_size": 4, "patch": 2, "layers": 1, "hidden": WIDTH, "heads": 2, "intermediate": 8},
    "mlp": {"hidden": (5,)},
    "towers": {},
}  # fmt: skip
TEXTS = ["orbit of a comet", "a comet and a goal", "goal in overtime", "overtime of orbit", ""]
RANDOM = np.random.default_rng(0)
RAW: dict[str, Any] = {
    "text": TEXTS,
    "image": RANDOM.integers(0, 256, (5, 6, 7, 3)).astype(np.uint8),
    "features": RANDOM.normal(size=(5, 9)).astype(np.float32),
}
# Two kinds at once, as towers read them, are of test_towers.py.
EVERY_KIND = [(name, kind) for name, encoder in ENCODERS.items() for kind in encoder.reads if kind in RAW]


def small(name: str) -> EncoderConfig:
    config: EncoderConfig = ENCODERS[name].config(**SMALL[name])
    return config


def untrained(name: str, kind: str) -> EmbeddingModel:
    """A model of the entry, its parameters moved away from their initial zeros and ones so that each matters."""
    preprocessor = encoders.fit(small(name), "made", kind, RAW[kind])
    inputs = {key: array.shape[1:] for key, array in preprocessor(RAW[kind]).items()}
    config = Config(DataConfig("features"), small(name), "made", WIDTH, (4, WIDTH), ("mrl",), 1)
    program = train_step(config, {"inputs": inputs, "vocabulary": preprocessor.vocabulary, "classes": ["a", "b"]})
    module = encoders.create(
        small(name), inputs=inputs, vocabulary=preprocessor.vocabulary, width=WIDTH, rngs=nnx.Rngs(0)
    )
    _, params, statistics = nnx.split(module, nnx.Param, nnx.BatchStat)  # type: ignore[misc]
    moved = jax.tree.map(lambda x: x + RANDOM.uniform(0.1, 0.3, x.shape).astype(np.float32), params)
    weights = Weights({"encoder": nnx.to_pure_dict(moved)}, nnx.to_pure_dict(statistics))
    return EmbeddingModel(program, weights, preprocessor, (4, WIDTH), "separate")


@pytest.mark.parametrize("name", ENCODERS)
def test_an_entry_is_named_as_its_key_and_made_of_frozen_defaults(name: str) -> None:
    config = ENCODERS[name].config()
    assert config.name == name
    assert isinstance(config, EncoderConfig)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "other"
    assert set(ENCODERS[name].learnt_from) <= {field.name for field in dataclasses.fields(config)}
    assert set(ENCODERS[name].reads) <= {*RAW, "image-text"}
    assert name in SMALL  # or nothing here says how to make it small


@pytest.mark.parametrize("kind", RAW)
@pytest.mark.parametrize("name", ENCODERS)
def test_data_that_an_encoder_cannot_read_is_refused_and_those_that_can_are_named(name: str, kind: str) -> None:
    if kind in ENCODERS[name].reads:
        encoders.check(small(name), kind, "made")
        return
    with pytest.raises(UserError, match=f"encoder={name} cannot read {kind}, which made holds; use ") as error:
        encoders.fit(small(name), "made", kind, RAW[kind])
    suitable = str(error.value).partition("; use ")[2].split(", ")
    assert suitable == [other for other, encoder in ENCODERS.items() if kind in encoder.reads]


@pytest.mark.parametrize(("name", "kind"), EVERY_KIND)
def test_a_preprocessor_that_was_saved_reads_alike(name: str, kind: str, tmp_path: Path) -> None:
    fitted = encoders.fit(small(name), "made", kind, RAW[kind])
    fitted.save(tmp_path)
    loaded = encoders.load(small(name), tmp_path, kind)
    assert loaded.vocabulary == fitted.vocabulary
    assert (loaded.tokenizer is None) == (kind != "text")
    arrays, again = fitted(RAW[kind]), loaded(RAW[kind])
    assert arrays.keys() == again.keys()
    for key, array in arrays.items():
        assert len(array) == 5
        np.testing.assert_array_equal(again[key], array)


@pytest.mark.parametrize(("name", "kind"), EVERY_KIND)
def test_it_embeds_each_example_by_itself(name: str, kind: str) -> None:
    model = untrained(name, kind)
    z = model.embed(RAW[kind])
    assert z.shape == (5, WIDTH)
    assert z.dtype == np.float32
    assert np.isfinite(z).all()
    assert np.ptp(z[:4], axis=0).max() > 1e-4
    np.testing.assert_allclose(model.embed(RAW[kind][1:2]), z[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), EVERY_KIND)
def test_its_module_inputs_are_those_of_its_preprocessor(name: str, kind: str) -> None:
    """What an exported model computes from token ids and mask, or from the raw arrays."""
    model = untrained(name, kind)
    embed = ENCODERS[name].module_inputs
    z = model.program.embed(model.weights, embed(model.reader, exported_arrays(model, kind)))
    np.testing.assert_allclose(z, model.embed(RAW[kind]), rtol=1e-4, atol=1e-5)


def exported_arrays(model: EmbeddingModel, kind: str) -> dict[str, Any]:
    """The arrays that an exported model is given for `RAW[kind]`."""
    if model.reader.tokenizer is None:
        return {kind: RAW[kind]}
    rows = [encoding.ids for encoding in model.reader.tokenizer.encode_batch(RAW[kind])]
    mask = np.arange(max(map(len, rows))) < np.array([len(row) for row in rows])[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(rows)
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}


@pytest.mark.parametrize(("name", "kind"), EVERY_KIND)
def test_its_onnx_graph_computes_the_same_or_the_export_says_that_there_is_none(name: str, kind: str) -> None:
    if ENCODERS[name].onnx is None:
        with pytest.raises(UserError, match=f"--to=onnx cannot hold encoder={name} .*; allowed here: stablehlo"):
            check_format("onnx", ENCODERS[name].config())
        return
    check_format("onnx", ENCODERS[name].config())
    onnxruntime = pytest.importorskip("onnxruntime")
    model = untrained(name, kind)
    arrays = exported_arrays(model, kind)
    inputs = {key: (array.dtype.name, ("batch", *array.shape[1:])) for key, array in arrays.items()}
    session = onnxruntime.InferenceSession(assemble(model, inputs).SerializeToString())
    (z,) = session.run(["embedding"], arrays)
    np.testing.assert_allclose(z, model.embed(RAW[kind]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("name", dict(EVERY_KIND))
def test_a_format_holds_an_encoder_or_names_those_that_do(name: str, to: str) -> None:
    if FORMATS[to].holds(ENCODERS[name]):
        check_format(to, ENCODERS[name].config())
        return
    with pytest.raises(UserError) as error:
        check_format(to, ENCODERS[name].config())
    allowed = str(error.value).partition("; allowed here: ")[2].split(", ")
    assert allowed
    assert all(FORMATS[other].holds(ENCODERS[name]) for other in allowed)


# ---- a cached tokenizer is that of its settings ----------------------------------------------------------------------

LEARNT = [
    (name, key)
    for name, encoder in ENCODERS.items()
    for key in encoder.learnt_from
    if key not in ("weights", "tokenizer") and "text" in encoder.reads
]  # pretrained ones bring their tokenizer: nothing is learnt and nothing cached


def streamed(folder: Path, config: EncoderConfig) -> set[str]:
    """The cached tokenizers after a fit of streamed texts."""
    texts = StreamedTexts(lambda: iter(TEXTS), len(TEXTS), "made")
    labels = np.zeros(len(TEXTS), np.int32)
    dataset = Dataset("made", "text", ("a",), Split(texts, labels), Split([], labels[:0]), Split([], labels[:0]))
    disk_examples.fit(
        Config(DataConfig("files", cache_dir=str(folder)), config, "made", WIDTH, (WIDTH,), ("mrl",), 1), dataset
    )
    return {path.name for path in (folder / "streamed").glob("tokenizer-*")}


def literals(config: EncoderConfig, key: str) -> tuple[str, ...]:
    """The words that a field may have."""
    return get_args(get_type_hints(type(config))[key])


@pytest.mark.parametrize(("name", "key"), LEARNT)
def test_another_value_of_a_setting_that_a_tokenizer_is_learnt_from_is_another_place(
    name: str, key: str, tmp_path: Path
) -> None:
    config = small(name)
    value = getattr(config, key)
    other = value - 1 if isinstance(value, int) else next(x for x in literals(config, key) if x != value)
    changed = dataclasses.replace(config, **{key: other})
    (place,) = streamed(tmp_path, config)
    assert streamed(tmp_path, config) == {place}
    assert len(streamed(tmp_path, changed)) == 2


@pytest.mark.parametrize("name", [name for name in dict(EVERY_KIND) if ENCODERS[name].learnt_from])
def test_no_other_setting_reaches_what_is_learnt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By construction: the fit is given the settings that `learnt_from` names, and no config."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    learn = ENCODERS[name].fit_preprocessor

    def spy(*data: Any, **settings: Any) -> Any:
        calls.append((data, settings))
        return learn(*data, **settings)

    monkeypatch.setitem(ENCODERS, name, dataclasses.replace(ENCODERS[name], fit_preprocessor=spy))
    kind = ENCODERS[name].reads[0]
    raw: Any = np.eye(3) if kind == "features" else RAW[kind]
    encoders.fit(small(name), "made", kind, raw)
    ((data, settings),) = calls
    assert data == (kind, raw)
    assert settings == {key: getattr(small(name), key) for key in ENCODERS[name].learnt_from}
