"""Two towers are two encoders of the table in one module: the same numbers, the same sentences for mistakes."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from mrl_jax import config, encoders
from mrl_jax.config import Config, build_encoder
from mrl_jax.data import DataConfig
from mrl_jax.data.captioned import CaptionedImages
from mrl_jax.encoders import ENCODERS, BagConfig, TowersConfig, TransformerConfig, ViTConfig
from mrl_jax.model import EmbeddingModel
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import train_step
from mrl_jax.training.step import Weights

WIDTH = 6
VIT: dict[str, Any] = {
    "patch": 4, "layers": 1, "hidden": 8, "heads": 2, "intermediate": 8, "projection": True,
}  # fmt: skip
TOWERS = TowersConfig(image=ViTConfig(**VIT), text=BagConfig(min_documents=1, word_dropout=0.0))
TEXTS = ["a red apple", "a green pear", "the red house"]
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
TABLE = CaptionedImages(TEXTS, IMAGES)


def model(towers: TowersConfig = TOWERS, seed: int = 0) -> EmbeddingModel:
    """An untrained model of these towers."""
    reader = encoders.fit(towers, "made", "image-text", TABLE)
    inputs = {name: array.shape[1:] for name, array in (reader(TEXTS) | reader(IMAGES)).items()}
    made = Config(
        DataConfig("image_text"), towers, "made", WIDTH, (2, WIDTH), ("mrl",), 1, loss=config.LossConfig("info_nce")
    )
    program = train_step(made, {"inputs": inputs, "vocabulary": reader.vocabulary, "columns": 2})
    return EmbeddingModel(program, program.init(seed).model, reader, (2, WIDTH), "separate")


@pytest.fixture(scope="module")
def both() -> EmbeddingModel:
    return model()


def alone(both: EmbeddingModel, side: str, inputs: dict[str, Any]) -> np.ndarray:
    """What the encoder of one side gives by itself, with the parameters that it has in the towers."""
    of = getattr(TOWERS, side)
    shapes = {name: array.shape[1:] for name, array in inputs.items()}
    module = ENCODERS[of.name].module(
        of, inputs=shapes, vocabulary=both.reader.vocabulary, width=WIDTH, rngs=nnx.Rngs(0)
    )
    graph, _, rest = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]
    given = {name: jnp.asarray(array) for name, array in inputs.items()}
    return np.asarray(nnx.merge(graph, both.weights.params["encoder"][side], rest)(given))


def test_each_side_embeds_as_its_encoder_does_alone(both: EmbeddingModel) -> None:
    np.testing.assert_allclose(both.embed(TEXTS), alone(both, "text", both.reader(TEXTS)), atol=1e-6)
    np.testing.assert_allclose(both.embed(IMAGES), alone(both, "image", both.reader(IMAGES)), atol=1e-6)


def test_a_batch_of_both_has_its_texts_first(both: EmbeddingModel) -> None:
    z = both.program.embed(both.weights, both.reader(TEXTS) | both.reader(IMAGES))
    np.testing.assert_allclose(z[: len(TEXTS)], both.embed(TEXTS), atol=1e-6)
    np.testing.assert_allclose(z[len(TEXTS) :], both.embed(IMAGES), atol=1e-6)


def test_what_is_given_chooses_the_tower(both: EmbeddingModel, tmp_path: Path) -> None:
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    z = both.encode(IMAGES[:1], dim=2)
    assert z.shape == (1, 2)
    for same in ([Image.fromarray(IMAGES[0])], [tmp_path / "a.png"], [(tmp_path / "a.png").read_bytes()]):
        np.testing.assert_array_equal(both.encode(same, dim=2), z)
    assert both.encode([]).shape == (0, WIDTH)
    with pytest.raises(UserError, match="No such file"):
        both.encode([tmp_path / "b.png"])
    with pytest.raises(UserError, match=r"texts\[1\] is not a valid str"):
        both.encode(["a", 3])  # type: ignore[list-item]


def test_preprocessors_that_were_saved_read_alike(both: EmbeddingModel, tmp_path: Path) -> None:
    both.reader.save(tmp_path)
    loaded = encoders.load(TOWERS, tmp_path, "image-text")
    for raw in (TEXTS, IMAGES):
        for name, array in both.reader(raw).items():
            np.testing.assert_array_equal(loaded(raw)[name], array)


def test_a_rotation_of_both_leaves_every_cosine_between_them(both: EmbeddingModel) -> None:
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(WIDTH, WIDTH)))
    turned = ENCODERS["towers"].rotate(TOWERS, both.weights.params["encoder"], rotation)
    assert turned is not None
    program = dataclasses.replace(both.program, encoder=turned[0])
    other = EmbeddingModel(program, Weights({"encoder": turned[1]}, {}), both.reader, both.dims, "separate")
    np.testing.assert_allclose(other.encode(TEXTS) @ other.encode(IMAGES).T, both.encode(TEXTS) @ both.encode(IMAGES).T,
                               atol=1e-5)  # fmt: skip
    assert np.abs(other.encode(TEXTS) - both.encode(TEXTS)).max() > 0.1


def test_an_image_tower_that_pools_at_the_end_cannot_be_rotated() -> None:
    towers = TowersConfig(image=ENCODERS["convnet"].config())
    parameters = {"image": {}, "text": {"projection": {"kernel": np.eye(2)}}}
    assert ENCODERS["towers"].rotate(towers, parameters, np.eye(2)) is None


def test_the_parameters_that_learn_are_those_of_each_tower(both: EmbeddingModel) -> None:
    parameters = both.weights.params["encoder"]
    assert encoders.trained(TOWERS, parameters) is None
    frozen = dataclasses.replace(TOWERS, text=TransformerConfig(frozen=True, projection=True, weights="minilm"))
    learns: Any = encoders.trained(frozen, {"image": parameters["image"], "text": {"projection": 0, "blocks": 0}})
    assert learns["text"] == {"projection": True, "blocks": False}
    assert all(jax.tree.leaves(learns["image"]))
    assert encoders.trained(frozen, {}) is not None


def test_a_fixed_size_step_trains_as_one_hot_weights_do(both: EmbeddingModel) -> None:
    """FF(m) of two towers: the same numbers in the first m coordinates, from the same slice of what is drawn."""
    full = both.program
    narrow = dataclasses.replace(full, width=2, objective=full.objective.narrow(2), wide=full)
    batch = {**both.reader(TEXTS), "image": IMAGES[:3], "label": np.zeros(3, np.float32)}
    key, state, small = jax.random.key(0), full.init(0), narrow.init(0)
    one_hot, one = (jnp.array([[1.0, 0.0]]), jnp.array([[1.0]]))
    row = lambda weights: type("R", (), {"weights": weights, "sampled": jnp.array(False), "settings": {}})()  # noqa: E731
    for _ in range(2):
        state, _ = full.step(state, batch, row(one_hot), key)
        small, _ = narrow.step(small, batch, row(one), key)
    inputs = {name: array for name, array in batch.items() if name != "label"}
    z, z_small = full.embed(state.model, inputs), narrow.embed(small.model, inputs)
    np.testing.assert_allclose(z[:, :2], z_small, atol=2e-5)
    widened: Any = narrow.widen(small.model).params["encoder"]
    assert jax.tree.structure(widened) == jax.tree.structure(full.shapes.params["encoder"])


# ---- the section of a configuration ----------------------------------------------------------------------------------

WORDS = ["data=image_text", "data.train=a.jsonl", "data.test=b.jsonl", "loss.name=info_nce", "width=16"]


def test_towers_are_sections_of_the_encoder_and_are_stored_with_all_their_keys(tmp_path: Path) -> None:
    made = config.from_command_line(
        [*WORDS, "encoder.image={name: convnet, channels: 8}", "encoder.text.name=static", "encoder.text.vocabulary=99"]
    )
    towers = made.encoder
    assert isinstance(towers, TowersConfig)
    assert (towers.image.name, towers.image.channels) == ("convnet", 8)  # type: ignore[attr-defined]
    assert (towers.text.name, towers.text.vocabulary, towers.max_length) == ("static", 99, 512)  # type: ignore[attr-defined]
    (tmp_path / "config.yaml").write_text(config.to_yaml(made))
    assert config.from_yaml(tmp_path / "config.yaml") == made
    assert build_encoder(dataclasses.asdict(towers)) == towers
    lower: Any = encoders.with_dtype(towers, "bfloat16")
    assert lower.image.dtype == "bfloat16"
    assert lower.text == towers.text  # a table of vectors has no such setting


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encoder.image.patches=4"], r"unknown key encoder.image.patches \(did you mean patch\?\)"),
        (["encoder.image.patch=four"], "encoder.image.patch=four is not allowed; a whole number"),
        (["encoder.text.ngrams=99"], "encoder.text.ngrams=99 is not allowed"),
        (["encoder.image.name=bag"], "encoder.image.name=bag is not allowed: it does not read image; use convnet"),
        (["encoder.text.name=vit"], "encoder.text.name=vit is not allowed: it does not read text; use bag"),
        (["encoder.text.name=towers"], "encoder.text.name=towers is not allowed: it does not read text"),
        (["encoder.text.name=bagg"], r"encoder.text.name=bagg is unknown \(did you mean bag\?\)"),
        (["encoder.image=vit"], "encoder.image=vit is not allowed; a section with the name of one of convnet"),
        (["encoder.sound.name=vit"], "unknown key encoder.sound"),
        (["encoder=bag", "encoder.image.patch=4"], "unknown key encoder.image"),
    ],
)
def test_a_wrong_key_of_a_tower_is_named_in_full(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.from_command_line([*WORDS, *words])


def test_towers_of_another_width_than_the_run_are_refused_with_the_key_of_the_tower() -> None:
    unequal = dataclasses.replace(TOWERS, image=ViTConfig(**{**VIT, "projection": False}))
    with pytest.raises(
        UserError, match=r"width=6 is not allowed; encoder.image.hidden=8 needs width=8 or encoder.image"
    ):
        model(unequal).program.check()


@pytest.mark.skipif(not hasattr(ViTConfig(), "mixup"), reason="no encoder mixes images")
def test_pictures_are_not_mixed() -> None:
    mixed = dataclasses.replace(TOWERS, image=ViTConfig(**VIT, mixup=0.2))  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"encoder.image.mixup=0.2 is not allowed; 0, as a mixture"):
        encoders.check_width(mixed, WIDTH)


def test_data_of_one_kind_is_refused_and_other_encoders_refuse_data_of_both() -> None:
    with pytest.raises(UserError, match="encoder=towers cannot read text, which made holds; use bag, static"):
        encoders.check(TOWERS, "text", "made")
    with pytest.raises(UserError, match="encoder=vit cannot read image-text, which made holds; use towers"):
        encoders.check(TOWERS.image, "image-text", "made")
