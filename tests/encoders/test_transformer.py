"""The transformer encoder, against BERT written once more in float64 NumPy."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from mrl_jax import config
from mrl_jax.encoders.transformer import Transformer
from mrl_jax.encoders.transformer_settings import TransformerConfig
from mrl_jax.system.errors import UserError
from mrl_jax.text import packing

TINY = TransformerConfig(layers=2, hidden=24, heads=3, intermediate=40, max_length=16, dropout=0.3)
VOCABULARY = 50
make: Any = partial(TransformerConfig, layers=2, hidden=24, heads=3, intermediate=40, max_length=16)


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Some accelerators round the operands of float32 products unless told not to."""
    with jax.default_matmul_precision("highest"):
        yield


def build(config: TransformerConfig = TINY, width: int = 24, seed: int = 0) -> Transformer:
    """A tiny model, its parameters far from their small initial values so that every part matters."""
    model = Transformer(
        config, inputs={"ids": (16,), "mask": (16,)}, vocabulary=VOCABULARY, width=width, rngs=nnx.Rngs(seed)
    )
    random = np.random.default_rng(seed)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda p: p + jnp.asarray(random.normal(0, 0.3, p.shape), jnp.float32), params))
    return model


def batch(lengths: list[int], length: int, seed: int = 1) -> dict[str, jax.Array]:
    """Random texts of the given lengths, padded to `length` with random ids that the mask must hide."""
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (len(lengths), length))
    mask = np.arange(length) < np.array(lengths)[:, None]
    return {"ids": jnp.asarray(ids, jnp.int32), "mask": jnp.asarray(mask, jnp.int8)}


def parameters(model: Transformer) -> dict[Any, Any]:
    return jax.tree.map(lambda a: np.asarray(a, np.float64), nnx.state(model, nnx.Param).to_pure_dict())


def numpy_bert(model: Transformer, p: dict[Any, Any], inputs: dict[str, jax.Array]) -> np.ndarray:
    """The same function of the parameters `p`, text by text and head by head, without padding."""

    def linear(x: np.ndarray, q: dict[str, np.ndarray]) -> np.ndarray:
        return x @ q["kernel"] + q["bias"]

    def norm(x: np.ndarray, q: dict[str, np.ndarray]) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * q["scale"] + q["bias"]

    rows = []
    for ids, mask in zip(np.asarray(inputs["ids"]), np.asarray(inputs["mask"]).astype(bool), strict=True):
        ids = ids[mask]
        x = norm(p["word"][ids] + p["position"][: len(ids)] + p["token_type"][0], p["norm"])
        for i in range(model.architecture.layers):
            block, heads = p["blocks"][i], []
            q, k, v = (linear(x, block[name]) for name in ("query", "key", "value"))
            for h in np.split(np.arange(x.shape[1]), model.architecture.heads):
                scores = q[:, h] @ k[:, h].T / np.sqrt(len(h))
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, h])
            x = norm(x + linear(np.concatenate(heads, -1), block["attended"]), block["attention_norm"])
            up = linear(x, block["up"])
            x = norm(x + linear(up * 0.5 * (1 + erf(up / np.sqrt(2))), block["down"]), block["output_norm"])
        z = x[0] if model.pooling == "cls" else x.mean(0)
        rows.append(z if "projection" not in p else linear(z, p["projection"]))
    return np.stack(rows)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("projection", [False, True])
def test_forward_equals_float64_numpy(pooling: str, projection: bool) -> None:
    width = 10 if projection else 24
    model = build(make(pooling=pooling, projection=projection), width)
    inputs = batch([12, 5, 1, 9], 12)
    z = model(inputs)
    assert z.shape == (4, width)
    assert z.dtype == jnp.float32
    np.testing.assert_allclose(z, numpy_bert(model, parameters(model), inputs), atol=2e-5, rtol=0)


def test_gradient_equals_finite_differences_of_the_numpy_model() -> None:
    model, inputs = build(), batch([6, 3], 8)
    graph, params = nnx.split(model, nnx.Param)
    target = np.random.default_rng(3).normal(size=(2, 24))
    gradient = jax.jit(jax.grad(lambda p: jnp.vdot(nnx.merge(graph, p)(inputs), target)))(params).to_pure_dict()
    here = parameters(model)
    direction = jax.tree.map(lambda a: np.random.default_rng(a.size).normal(size=a.shape), here)
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: float(np.vdot(np.float64(g), d)), gradient, direction)))

    def loss(step: float) -> float:
        moved = jax.tree.map(lambda a, d: a + step * d, here, direction)
        return float(np.vdot(numpy_bert(model, moved, inputs), target))

    assert slope == pytest.approx((loss(1e-5) - loss(-1e-5)) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padding_and_company_do_not_change_an_embedding(dtype: str) -> None:
    model = build(make(dtype=dtype))
    together = batch([7, 16, 3, 0], 16)
    z = model(together)
    alone = {key: value[:1, :7] for key, value in together.items()}
    np.testing.assert_allclose(z[0], model(alone)[0], atol=1e-5)
    other_padding = {**together, "ids": jnp.where(together["mask"] == 1, together["ids"], 0)}
    np.testing.assert_array_equal(z, model(other_padding))
    np.testing.assert_array_equal(z, model({**together, "mask": together["mask"].astype(bool)}))
    np.testing.assert_array_equal(z[3], 0)  # a row that only fills up the batch


def test_a_row_of_padding_gives_no_nan_and_no_gradient() -> None:
    model = build()
    graph, params = nnx.split(model, nnx.Param)

    def loss(p: nnx.State, inputs: dict[str, jax.Array]) -> jax.Array:
        return jnp.sum(nnx.merge(graph, p)(inputs) ** 3)

    with_filler = batch([5, 0], 8)
    without = {key: value[:1] for key, value in with_filler.items()}
    for a, b in zip(
        *(jax.tree.leaves(jax.jit(jax.grad(loss))(params, x)) for x in (with_filler, without)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-3 * float(jnp.abs(b).max() + 1e-3))


def test_bf16_model_is_close_to_float32_with_gradients() -> None:
    inputs, out = batch([12, 5, 9], 12), []
    for dtype in ("float32", "bfloat16"):
        graph, params = nnx.split(build(make(dtype=dtype)), nnx.Param)
        gradient = jax.jit(jax.grad(lambda p, graph=graph: jnp.sum(nnx.merge(graph, p)(inputs)[:, :5] ** 2)))(params)
        assert {a.dtype for a in jax.tree.leaves((params, gradient))} == {np.dtype("float32")}
        out.append(np.concatenate([np.ravel(a) for a in jax.tree.leaves(gradient)]))
    cosine = out[0] @ out[1] / np.linalg.norm(out[0]) / np.linalg.norm(out[1])
    assert 0.99 < cosine < 0.999999999


def test_dropout_only_in_training() -> None:
    model, inputs = build(), batch([12, 5], 12)
    quiet = build(make(dropout=0.0, attention_dropout=0.0))
    np.testing.assert_array_equal(model(inputs), model(inputs))
    np.testing.assert_array_equal(model(inputs), quiet(inputs, rngs=nnx.Rngs(0)))
    first, again, other = (model(inputs, rngs=nnx.Rngs(dropout=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - other).max() > 1e-2
    assert jnp.abs(first - model(inputs)).max() > 1e-2
    for key in ("dropout", "attention_dropout"):  # each of the two does something
        one = build(make(**{"dropout": 0.0, "attention_dropout": 0.0, key: 0.5}))
        assert jnp.abs(one(inputs, rngs=nnx.Rngs(0)) - one(inputs)).max() > 1e-2


def loss_of(model: Transformer, inputs: dict[str, jax.Array]) -> tuple[Any, nnx.State]:
    """A function of the parameters in training, and the parameters."""
    graph, params = nnx.split(model, nnx.Param)
    return lambda params: jnp.sum(nnx.merge(graph, params)(inputs, rngs=nnx.Rngs(dropout=3)) ** 2), params


def test_layers_computed_once_more_take_less_memory_on_a_cpu() -> None:
    """What the compiled program holds at once beside its inputs and results."""
    needed = []
    for remat in (False, True):
        loss, params = loss_of(build(make(remat=remat, layers=4, max_length=64)), batch([64] * 16, 64))
        needed.append(jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes)
    assert needed[1] < 0.55 * needed[0]


ANY_FAMILY = ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("modernbert", "mpnet", "qwen3", "t5"))]


@pytest.mark.parametrize("family", ANY_FAMILY)
def test_layers_computed_once_more_have_the_same_gradient(family: str) -> None:
    """With dropout: the masks are the same."""
    sizes: Any = {"family": family, "layers": 4 if family == "modernbert" else 2}
    programs = (loss_of(build(make(remat=remat, **sizes)), batch([12, 5], 16)) for remat in (False, True))
    plain, again = (jax.tree.leaves(jax.jit(jax.grad(loss))(params)) for loss, params in programs)
    for a, b in zip(again, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(float(jnp.abs(b).max()), 1.0))


def test_attention_dropout_keeps_the_expected_output() -> None:
    """Weights are dropped before the softmax is divided by its sum; the mean over masks is the plain output."""
    block = build(make(attention_dropout=0.4)).blocks[0]
    x, bias = jax.random.normal(jax.random.key(0), (2, 6, 24)), jnp.zeros((2, 1, 1, 6))
    keys = jax.random.split(jax.random.key(1), 4000)
    many = jax.vmap(lambda key: block.attention(x, bias, nnx.Rngs(dropout=key)))(keys)
    error = jnp.abs(many.mean(0) - block.attention(x, bias, None)) / (many.std(0) / np.sqrt(4000))
    assert error.max() < 4.5
    assert many.std(0).min() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vmap_over_stacked_parameters_equals_a_loop(dtype: str) -> None:
    inputs = batch([8, 5, 2], 8)
    splits = [nnx.split(build(make(layers=1, dtype=dtype), seed=seed), nnx.Param, ...) for seed in range(3)]
    graph, _, rest = splits[0]
    assert not jax.tree.leaves(rest)  # parameters are all the state there is
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *(params for _, params, _ in splits))
    keys = jax.random.split(jax.random.key(0), 3)

    def loss(params: nnx.State, key: jax.Array) -> jax.Array:
        return jnp.sum(nnx.merge(graph, params, rest)(inputs, rngs=nnx.Rngs(dropout=key))[:, :7] ** 2)

    step = jax.value_and_grad(loss)
    together = jax.jit(jax.vmap(step))(stacked, keys)
    one = jax.jit(step)
    for i, (_, params, _) in enumerate(splits):
        alone = one(params, keys[i])
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            scale = float(jnp.abs(b).max()) + 1e-3
            np.testing.assert_allclose(a[i] / scale, b / scale, atol=1e-4 if dtype == "float32" else 2e-2)


def test_from_scratch_starts_like_bert() -> None:
    config = TransformerConfig(layers=1, hidden=64, heads=4, intermediate=128, max_length=16)
    model = Transformer(config, inputs={"ids": (16,), "mask": (16,)}, vocabulary=500, width=64, rngs=nnx.Rngs(0))
    assert float(jnp.std(model.word[...])) == pytest.approx(0.02, rel=0.15)
    assert float(jnp.abs(model.blocks[0].up.bias[...]).max()) == 0
    assert model.architecture.positions == 16


@pytest.mark.parametrize(
    ("change", "width", "words"),
    [
        ({}, 16, ("width=16", "encoder.hidden=24", "encoder.projection=true")),
        ({"heads": 5}, 24, ("encoder.heads=5", "divisor of encoder.hidden=24")),
        ({"layers": 0}, 24, ("encoder.layers=0", "above 0")),
        ({"max_length": -1}, 24, ("encoder.max_length=-1",)),
        ({"dropout": 1.0}, 24, ("encoder.dropout=1.0", "value < 1")),
        ({"pooling": "maxx"}, 24, ("encoder.pooling=maxx", "did you mean max?", "mean, cls")),
        ({"dtype": "bfloat61"}, 24, ("did you mean bfloat16",)),
    ],
)
def test_wrong_values_are_named(change: dict[str, Any], width: int, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        build(make(**change), width)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("word", ["encoder.max_length=-1", "encoder.max_length=0", "encoder.vocabulary=-1"])
def test_a_setting_that_no_tokenizer_can_have_is_refused_before_it_learns(word: str) -> None:
    with pytest.raises(UserError, match=f"{word} is not allowed; at least 1"):
        config.from_command_line(["data=newsgroups", "encoder=transformer", word])


def test_images_and_texts_that_are_too_long_are_refused() -> None:
    with pytest.raises(UserError, match=r"reads text.*image"):
        Transformer(TINY, inputs={"image": (8, 8, 3)}, vocabulary=0, width=24, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="17 tokens is too long; the encoder has 16"):
        build()(batch([17], 17))


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 0.05)])
@pytest.mark.parametrize("packed", [False, True])
def test_fused_attention_is_the_same_function(dtype: str, tolerance: float, packed: bool) -> None:
    """On a CPU XLA gets the formula; on a GPU, where there is one, cuDNN's kernel in bfloat16."""
    rng = np.random.default_rng(0)
    lengths = np.array([16, 3, 9])
    ids = rng.integers(1, 50, (3, 16)).astype(np.int32)
    inputs = {"ids": ids, "mask": np.arange(16) < lengths[:, None]}
    if packed:
        inputs = packing.pack(ids, lengths, 16)
    outcomes = []
    for attention in ("plain", "fused"):
        config = TransformerConfig(
            layers=2, hidden=32, heads=4, intermediate=32, max_length=16, dtype=dtype, dropout=0.0,
            attention=attention, attention_dropout=0.0,
        )  # fmt: skip
        model = Transformer(config, inputs={"ids": (16,), "mask": (16,)}, vocabulary=50, width=32, rngs=nnx.Rngs(0))

        def loss(model: Transformer) -> jax.Array:
            return jnp.sum(model(jax.tree.map(jnp.asarray, inputs))[:, ::2])

        slopes = jax.tree.leaves(nnx.to_pure_dict(nnx.state(nnx.jit(nnx.grad(loss))(model))))
        outcomes.append([np.asarray(model(jax.tree.map(jnp.asarray, inputs))), *map(np.asarray, slopes)])
    for plain, fused in zip(*outcomes, strict=True):
        assert np.linalg.norm(plain - fused) <= tolerance * max(0.1, float(np.linalg.norm(plain)))


def test_fused_attention_has_no_dropout_of_its_own() -> None:
    config = TransformerConfig(layers=1, hidden=32, heads=4, intermediate=32, attention="fused")
    message = r"encoder\.attention_dropout=0\.1 is not allowed with encoder\.attention=fused"
    with pytest.raises(UserError, match=message):
        Transformer(config, inputs={"ids": (16,), "mask": (16,)}, vocabulary=50, width=32, rngs=nnx.Rngs(0))
