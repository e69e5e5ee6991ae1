"""Folders of vision transformers with random weights, and what they compute: NumPy in float64, one image at a time."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
TOWER = {**SIZES, "intermediate_size": 12}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"model_type": "vit", **TOWER, "hidden_act": "gelu", "layer_norm_eps": 1e-6},
    "dinov2": {"model_type": "dinov2", **SIZES, "mlp_ratio": 2},
    "dinov2_swiglu": {"model_type": "dinov2", **SIZES, "mlp_ratio": 3, "use_swiglu_ffn": True},
    "dinov2_with_registers": {"model_type": "dinov2_with_registers", **SIZES, "mlp_ratio": 2, "num_register_tokens": 3},
    "clip_vision_model": {"model_type": "clip_vision_model", **TOWER, "hidden_act": "quick_gelu"},
    "clip": {
        "model_type": "clip",
        "projection_dim": 6,
        "vision_config": {**TOWER, "hidden_act": "gelu", "projection_dim": 6},
    },
    "siglip_vision_model": {"model_type": "siglip_vision_model", **TOWER},
    "siglip": {"model_type": "siglip", "vision_config": TOWER},
}
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 8, "width": 8},
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.5, 0.6, 0.7],
}


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    save_file(
        {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}, folder / "model.safetensors"
    )
    return folder


def layer(names: tuple[str, ...], at: str, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    query, key, value, out, norm1, norm2, up, down = names
    d, f = sizes["hidden"], sizes["intermediate"]
    shapes: dict[str, tuple[int, ...]] = {}
    for name, n_out, n_in in ((query, d, d), (key, d, d), (value, d, d), (out, d, d), (up, f, d), (down, d, f)):
        shapes |= {f"{at}{name}.weight": (n_out, n_in), f"{at}{name}.bias": (n_out,)}
    return shapes | {f"{at}{norm}.{part}": (d,) for norm in (norm1, norm2) for part in ("weight", "bias")}


OLD = ("attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense")
NAMES = {
    "vit": (*OLD, "layernorm_before", "layernorm_after", "intermediate.dense", "output.dense"),
    "dinov2": (*OLD, "norm1", "norm2", "mlp.fc1", "mlp.fc2"),
    "clip": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "layer_norm1",
             "layer_norm2", "mlp.fc1", "mlp.fc2"),
}  # fmt: skip


def kind_of(name: str) -> str:
    return "vit" if name == "vit" else "dinov2" if name.startswith("dinov2") else "clip"


def make(name: str, seed: int = 0, side: int = 2) -> dict[str, np.ndarray]:
    """Random tensors of the entry of `CONFIGS`, with the names of a file of transformers; `side` patches each way."""
    config = CONFIGS[name].get("vision_config", CONFIGS[name])
    d, patch, kind = config["hidden_size"], config["patch_size"], kind_of(name)
    f = config.get("intermediate_size", config.get("mlp_ratio", 0) * d)
    blocks = "encoder.layers." if kind == "clip" else "encoder.layer."
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(config["num_hidden_layers"]):
        shapes |= layer(NAMES[kind], f"{blocks}{i}.", {"hidden": d, "intermediate": f})
        if kind == "dinov2":
            shapes |= {f"{blocks}{i}.layer_scale{j}.lambda1": (d,) for j in (1, 2)}
        if name == "dinov2_swiglu":
            gated = (int(f * 2 / 3) + 7) // 8 * 8
            shapes = {key: shape for key, shape in shapes.items() if f"{i}.mlp.fc" not in key}
            for part, n_out, n_in in (("in", 2 * gated, d), ("out", d, gated)):
                at = f"{blocks}{i}.mlp.weights_{part}"
                shapes |= {f"{at}.weight": (n_out, n_in), f"{at}.bias": (n_out,)}
    if kind == "clip":
        token = int(name.startswith("clip"))
        shapes |= {"embeddings.patch_embedding.weight": (d, 3, patch, patch),
                   "embeddings.position_embedding.weight": (side**2 + token, d),
                   "post_layernorm.weight": (d,), "post_layernorm.bias": (d,)}  # fmt: skip
        if token:
            shapes |= {"embeddings.class_embedding": (d,), "pre_layrnorm.weight": (d,), "pre_layrnorm.bias": (d,)}
        else:
            shapes |= {"embeddings.patch_embedding.bias": (d,), "head.probe": (1, 1, d),
                       "head.attention.in_proj_weight": (3 * d, d), "head.attention.in_proj_bias": (3 * d,),
                       "head.attention.out_proj.weight": (d, d), "head.attention.out_proj.bias": (d,),
                       "head.layernorm.weight": (d,), "head.layernorm.bias": (d,),
                       "head.mlp.fc1.weight": (f, d), "head.mlp.fc1.bias": (f,),
                       "head.mlp.fc2.weight": (d, f), "head.mlp.fc2.bias": (d,)}  # fmt: skip
    else:
        shapes |= {"embeddings.patch_embeddings.projection.weight": (d, 3, patch, patch),
                   "embeddings.patch_embeddings.projection.bias": (d,), "embeddings.cls_token": (1, 1, d),
                   "embeddings.position_embeddings": (1, side**2 + 1, d), "layernorm.weight": (d,),
                   "layernorm.bias": (d,)}  # fmt: skip
        if registers := config.get("num_register_tokens"):
            shapes["embeddings.register_tokens"] = (1, registers, d)
        if kind == "dinov2":
            shapes["embeddings.mask_token"] = (1, d)
    prefix = "vision_model." if name in ("clip", "siglip") else ""
    shapes = {prefix + key: shape for key, shape in shapes.items()}
    if name == "clip":
        shapes |= {"visual_projection.weight": (6, d), "text_projection.weight": (6, 5), "logit_scale": ()}
        shapes["text_model.encoder.layers.7.mlp.fc1.weight"] = (2, 2)
    random = np.random.default_rng(seed)
    return {key: random.normal(size=shape).astype(np.float32) * 0.5 + ("norm" in key) for key, shape in shapes.items()}


def erf(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.vectorize(math.erf)(x))


ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "gelu_pytorch_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def oracle(name: str, tensors: Mapping[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    """The vector of one uint8 image [h, w, 3] of the size that the model was made for, in float64."""
    config, kind = CONFIGS[name].get("vision_config", CONFIGS[name]), kind_of(name)
    t = {key.removeprefix("vision_model."): array.astype(np.float64) for key, array in tensors.items()}
    epsilon = config.get("layer_norm_eps", {"vit": 1e-12, "dinov2": 1e-6, "clip": 1e-5}[kind])
    epsilon = 1e-6 if name.startswith("siglip") else epsilon
    usual = "gelu_pytorch_tanh" if name.startswith("siglip") else "quick_gelu" if kind == "clip" else "gelu"
    act, heads, patch = (
        ACTIVATIONS[config.get("hidden_act", usual)],
        config["num_attention_heads"],
        config["patch_size"],
    )

    def linear(x: np.ndarray, at: str) -> np.ndarray:
        return x @ t[f"{at}.weight"].T + t.get(f"{at}.bias", 0)

    def norm(x: np.ndarray, at: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * t[f"{at}.weight"] + t[f"{at}.bias"]

    def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        width = q.shape[1] // heads
        parts = []
        for head in range(heads):
            cut = slice(head * width, (head + 1) * width)
            scores = q[:, cut] @ k[:, cut].T / math.sqrt(width)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            parts.append(weights / weights.sum(1, keepdims=True) @ v[:, cut])
        return np.concatenate(parts, axis=1)

    pixels = (image / 255 - PREPROCESSOR["image_mean"]) / PREPROCESSOR["image_std"]
    at = "embeddings.patch_embedding" if kind == "clip" else "embeddings.patch_embeddings.projection"
    kernel = t[f"{at}.weight"]
    rows = []
    for i in range(0, len(image), patch):
        for j in range(0, image.shape[1], patch):
            part = pixels[i : i + patch, j : j + patch]
            rows.append(np.einsum("ijc,dcij->d", part, kernel) + t.get(f"{at}.bias", 0))
    x = np.stack(rows)
    if "embeddings.cls_token" in t:
        x = np.concatenate([t["embeddings.cls_token"][0], x]) + t["embeddings.position_embeddings"][0]
    else:
        token = t.get("embeddings.class_embedding")
        x = x if token is None else np.concatenate([token[None], x])
        x = x + t["embeddings.position_embedding.weight"]
    if "embeddings.register_tokens" in t:
        x = np.concatenate([x[:1], t["embeddings.register_tokens"][0], x[1:]])
    x = norm(x, "pre_layrnorm") if "pre_layrnorm.weight" in t else x
    query, key, value, out, norm1, norm2, up, down = NAMES[kind]
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layers.{i}." if kind == "clip" else f"encoder.layer.{i}."
        seen = norm(x, at + norm1)
        attended = linear(attend(*(linear(seen, at + part) for part in (query, key, value))), at + out)
        x = x + attended * t.get(f"{at}layer_scale1.lambda1", 1)
        seen = norm(x, at + norm2)
        if name == "dinov2_swiglu":
            gate, rest = np.split(linear(seen, f"{at}mlp.weights_in"), 2, axis=1)
            fed = linear(ACTIVATIONS["silu"](gate) * rest, f"{at}mlp.weights_out")
        else:
            fed = linear(act(linear(seen, at + up)), at + down)
        x = x + fed * t.get(f"{at}layer_scale2.lambda1", 1)
    x = norm(x, "post_layernorm" if kind == "clip" else "layernorm")
    if "head.probe" in t:
        weights, biases = (np.split(t[f"head.attention.in_proj_{part}"], 3) for part in ("weight", "bias"))
        q, k, v = (y @ w.T + b for y, w, b in zip((t["head.probe"][0], x, x), weights, biases, strict=True))
        h = linear(attend(q, k, v), "head.attention.out_proj")
        h = h + linear(act(linear(norm(h, "head.layernorm"), "head.mlp.fc1")), "head.mlp.fc2")
        return h[0]
    return linear(x[0], "visual_projection") if "visual_projection.weight" in t else x[0]
