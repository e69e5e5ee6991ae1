"""A folder that `transformers` loads: a vision transformer with its tensors, and how its images are prepared.

The reverse of `encoders.vit_folder`, for the architectures that there are in transformers: of a run that began with
such weights, and of one from scratch that has the parts of one of them. There is no module for a last linear map, but
of CLIP, whose own has no bias.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from mrl_jax.encoders import EncoderType, ViTConfig
from mrl_jax.encoders.huggingface import convert, join
from mrl_jax.encoders.image_rules import ImageRule
from mrl_jax.encoders.lora import merge
from mrl_jax.encoders.onnx_graph import as_float32
from mrl_jax.encoders.positions import sincos
from mrl_jax.encoders.vit import complete, standalone
from mrl_jax.encoders.vit_families import FUNCTIONS, Architecture, tensors
from mrl_jax.export.folder import say_dims, typical_dim, write_json
from mrl_jax.model import EmbeddingModel
from mrl_jax.system import files
from mrl_jax.system.errors import UserError

LIMITS = "it holds vision transformers"
NOTE = (
    "The embedding is float32 and not of unit length: truncate it first, normalise it then. Image processors of "
    "transformers on Pillow give the pixels of a run that began with such weights; of one from scratch nearly, as they "
    "round the longer side down. Those on torchvision interpolate a little differently."
)
REFUSED = "--to=transformers cannot hold this encoder: "
FEATURES = {
    "cls": "last_hidden_state[:, 0]",
    "mean": "last_hidden_state[:, {first}:].mean(dim=1)",
    "attention": "pooler_output",
}
MAX_RATIO = 64  # of the width inside feed-forward to that of the residual stream


def holds(encoder: EncoderType[Any]) -> bool:
    """Whether the encoder can be written in this format."""
    return encoder.config is ViTConfig


def write(model: EmbeddingModel, folder: Path, name: str) -> tuple[str, str]:
    """Write the files; returns an example of use and what was done. Raises `UserError` for parts that no architecture
    of transformers has."""
    rule = model.reader
    if not isinstance(rule, ImageRule):
        raise UserError(f"{REFUSED}its run does not say how images are prepared")
    if rule.how == "cover" and rule.size[0] != rule.size[1]:
        raise UserError(
            f"{REFUSED}its pictures are scaled to cover {rule.size[0]} × {rule.size[1]} pixels, and those of "
            "transformers a square"
        )
    config, a = complete(standalone(model.program.encoder, 0)[0], rule.shape)  # type: ignore[arg-type]
    parameters = merge(model.weights.params["encoder"])
    check(a, config, parameters)
    content, kind = to_config(a, model.program.width if config.projection else None)
    write_json(folder / "config.json", content | say_dims(model))
    write_json(folder / "preprocessor_config.json", to_preprocessor(a, rule, config))
    files.write(folder / "model.safetensors", save(to_tensors(a, parameters), {"format": "pt"}))
    first = int(a.class_token) + a.registers
    features = "image_embeds" if config.projection else FEATURES[a.pooling].format(first=first)
    if a.pooling == "cls" and a.family == "clip" and not config.projection:
        features = "pooler_output"  # the class token after the last norm, which stands in no other output
    usage = f"""\
import torch
from PIL import Image
from transformers import AutoImageProcessor, {kind}

processor = AutoImageProcessor.from_pretrained("{name}", use_fast=False)
model = {kind}.from_pretrained("{name}").eval()
with torch.no_grad():
    z = model(**processor([Image.new("RGB", (300, 200))], return_tensors="pt")).{features}
z = torch.nn.functional.normalize(z[:, :{typical_dim(model)}])
"""
    return usage, f"{model.program.width} coordinates, {kind}"


def check(a: Architecture, config: ViTConfig, parameters: Any) -> None:
    """Raise `UserError` for parts that the architecture does not have in transformers."""
    family, dinov2 = a.described, a.family.startswith("dinov2")
    if a.channels != 3:
        raise UserError(f"{REFUSED}its images have {a.channels} channel, and those of transformers 3")
    if a.grid[0] != a.grid[1]:
        raise UserError(
            f"{REFUSED}its images have {a.grid[0]} × {a.grid[1]} patches, and those of transformers a square"
        )
    if a.class_token != (family.class_token is not None):
        there, key = ("a", "cls") if family.class_token else ("no", "mean")
        raise UserError(f"{REFUSED}{a.family} has {there} class token there; train it with encoder.pooling={key}")
    if (a.registers and a.family != "dinov2") or (a.layer_scale and not dinov2):
        what = "registers" if a.registers else "layer_scale"
        raise UserError(f"{REFUSED}encoder.{what} are parts of encoder.family=dinov2 there, not of {a.family}")
    if (a.pooling == "attention") != (family.attention_pooling is not None) or (
        a.family == "clip" and a.pooling == "mean"
    ):
        raise UserError(f"{REFUSED}encoder.pooling={a.pooling} is not that of {a.family} there, {family.pooling}")
    if config.projection and (a.family != "clip" or "bias" in parameters["projection"]):
        raise UserError(f"{REFUSED}{a.family} has no last linear map there (encoder.projection=true); --to=onnx has it")


def to_config(a: Architecture, projected: int | None) -> tuple[dict[str, Any], str]:
    """The content of config.json, and the class that reads it."""
    content: dict[str, Any] = {
        "hidden_size": a.hidden,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "image_size": a.grid[0] * a.patch,
        "patch_size": a.patch,
        "num_channels": 3,
        "layer_norm_eps": a.layer_norm_eps,
        "hidden_act": FUNCTIONS[a.function][1][0],
    }
    kind, model_type = a.described.model, a.described.model_types[0]
    if not a.family.startswith("dinov2"):
        content["intermediate_size"] = a.intermediate
    else:
        gated = a.family == "dinov2_swiglu"
        content |= {"mlp_ratio": _ratio(a, gated), "use_swiglu_ffn": gated, "layerscale_value": a.layer_scale or 1.0}
        if a.registers:
            kind, model_type = "Dinov2WithRegistersModel", "dinov2_with_registers"
            content["num_register_tokens"] = a.registers
    if projected is not None:
        kind, content["projection_dim"] = "CLIPVisionModelWithProjection", projected
    return {"model_type": model_type, "architectures": [kind], **content}, kind


def _ratio(a: Architecture, gated: bool) -> int:
    for ratio in range(1, MAX_RATIO):
        inner = ratio * a.hidden
        if ((int(inner * 2 / 3) + 7) // 8 * 8 if gated else inner) == a.intermediate:
            return ratio
    raise UserError(
        f"{REFUSED}encoder.intermediate={a.intermediate} is no multiple of encoder.hidden={a.hidden}, as in {a.family}"
    )


def to_preprocessor(a: Architecture, rule: ImageRule, config: ViTConfig) -> dict[str, Any]:
    """The content of preprocessor_config.json; it takes the centre of images that are larger than
    the encoder reads."""
    crop = {"height": a.grid[0] * a.patch, "width": a.grid[1] * a.patch}
    size = {"height": rule.size[0], "width": rule.size[1]}
    if rule.how in ("shortest", "cover"):  # alike for a square, but for how the longer side is rounded
        size = {"shortest_edge": rule.size[0]}
    crops = rule.how != "exact" or (rule.size != (crop["height"], crop["width"]))
    assert config.mean is not None
    assert config.std is not None
    return {
        "image_processor_type": "CLIPImageProcessor" if crops else "ViTImageProcessor",
        "do_resize": rule.how != "none",
        "size": size,
        "resample": rule.resample,
        **({"do_center_crop": True, "crop_size": crop} if crops else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean) * (3 // len(config.mean)),
        "image_std": list(config.std) * (3 // len(config.std)),
    }


def to_tensors(a: Architecture, parameters: Any) -> dict[str, np.ndarray]:
    """The tensors of model.safetensors, float32, without a pooler that is not ours."""
    family, found = a.described, {}
    if a.position == "sincos":  # a table that does not learn is one all the same
        before = np.zeros((int(a.class_token), a.hidden), np.float32)
        parameters = {**parameters, "position": np.concatenate([before, sincos(a.grid, a.hidden)])}
    for path, name, _ in tensors(replace(a, position="learned")):
        leaf: Any = parameters
        for step in path:
            leaf = leaf[step]
        found[name] = unflat(path, convert(path, as_float32(leaf)), a)
    prefix = family.prefix if a.family in ("clip", "siglip") else ""
    made = {f"{prefix}{name}": np.ascontiguousarray(array) for name, array in join(found).items()}
    if "projection" in parameters:
        made[f"{family.projected}.weight"] = np.ascontiguousarray(as_float32(parameters["projection"]["kernel"]).T)
    if a.family.startswith("dinov2"):  # of training, which no features depend on
        made["embeddings.mask_token"] = np.zeros((1, a.hidden), np.float32)
    return made


def unflat(path: tuple[Any, ...], array: np.ndarray, a: Architecture) -> np.ndarray:
    """A tensor of patches or tokens with the axes that it has there: the reverse of `vit_folder.flat`."""
    clip = a.family in ("clip", "siglip")
    if path == ("patches", "kernel"):
        return array.reshape(a.hidden, a.patch, a.patch, a.channels).transpose(0, 3, 1, 2)
    if path == ("pool", "probe") or (path == ("class_token",) and not clip):
        return array.reshape(1, 1, -1)
    if path == ("registers",) or (path == ("position",) and not clip):
        return array[None]
    return array
