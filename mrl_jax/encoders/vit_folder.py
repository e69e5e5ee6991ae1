"""A vision transformer in Hugging Face format → the sizes and parameters of our `ViT`, and how its images are prepared.

A folder holds `config.json`, `model.safetensors` and `preprocessor_config.json`. Of a whole CLIP or SigLIP, whose
settings of the vision tower are in `vision_config`, only that tower and its projection are read. Where images have
another size than a table of positions was trained for, it is interpolated as transformers does it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mrl_jax.encoders import huggingface
from mrl_jax.encoders.folder_settings import NOTHING, Keys, check_settings, read_json
from mrl_jax.encoders.huggingface import ParameterPath
from mrl_jax.encoders.image_rules import ImageRule
from mrl_jax.encoders.positions import resample
from mrl_jax.encoders.vit_families import FUNCTIONS, VISION, Architecture, Function, tensors
from mrl_jax.encoders.vit_preprocessing import read_rule
from mrl_jax.system.errors import UserError

MODEL_TYPES = {kind: name for name, family in reversed(VISION.items()) for kind in family.model_types}
NOTES = (
    "architectures dtype torch_dtype transformers_version initializer_range initializer_factor id2label label2id "
    "num_labels problem_type _name_or_path return_dict output_attentions output_hidden_states torchscript "
    "use_bfloat16 tie_word_embeddings chunk_size_feed_forward is_encoder_decoder "
    "_attn_implementation_autoset"
)
TOWER = Keys(  # of config.json, or of vision_config in that of a whole model
    used="model_type hidden_size num_hidden_layers num_attention_heads intermediate_size mlp_ratio image_size "
    "patch_size num_channels hidden_act layer_norm_eps num_register_tokens use_swiglu_ffn layerscale_value "
    "projection_dim",
    only={
        "qkv_bias": (True, None),
        "use_absolute_position_embeddings": (True, None),
        "apply_layernorm": (True, None),
        "vision_use_head": (True, None),
        "quantization_config": NOTHING,
        "pruned_heads": NOTHING,
        "is_decoder": (False,),
        "add_cross_attention": (False,),
    },
    # `use_mask_token` is of training; older files of CLIP's towers have the settings of generation of all models.
    harmless=f"{NOTES} attention_probs_dropout_prob hidden_dropout_prob attention_dropout dropout drop_path_rate "
    "encoder_stride pooler_act pooler_output_size out_features out_indices stage_names reshape_hidden_states "
    "use_mask_token bad_words_ids begin_suppress_tokens bos_token_id cross_attention_hidden_size "
    "decoder_start_token_id diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size eos_token_id "
    "exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id length_penalty "
    "max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores "
    "pad_token_id prefix remove_invalid_values repetition_penalty return_dict_in_generate sep_token_id "
    "suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p "
    "typical_p",
)
WHOLE = Keys(  # of config.json of a whole model
    used="vision_config model_type projection_dim",
    only={"quantization_config": NOTHING},
    harmless=f"{NOTES} text_config text_config_dict vision_config_dict logit_scale_init_value",
)
DEFAULTS: dict[str, dict[str, Any]] = {  # of transformers, where a file leaves a key out
    "vit": {"layer_norm_eps": 1e-12, "image_size": 224, "patch_size": 16},
    "dinov2": {"layer_norm_eps": 1e-6, "image_size": 224, "patch_size": 14, "mlp_ratio": 4},
    "clip": {"layer_norm_eps": 1e-5, "image_size": 224, "patch_size": 32, "intermediate_size": 3072},
    "siglip": {"layer_norm_eps": 1e-6, "image_size": 224, "patch_size": 16, "intermediate_size": 3072},
}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
MAX_SIZES = {"layer_norm_eps": 1.0, "num_hidden_layers": 1000, "layerscale_value": 1e6}
MAX_OTHER_SIZE = 1_000_000


@dataclass(frozen=True)
class Description:
    """What a folder says of its vision transformer, without the tensors."""

    architecture: Architecture  # of images of the size that `rule` makes
    trained_grid: int  # patches on each side of the table of positions in the file
    antialias: bool  # whether interpolation to a smaller grid is smoothed
    rule: ImageRule
    mean: tuple[float, ...]
    std: tuple[float, ...]
    projected: int | None  # width of a last linear map; None: there is none


@cache  # a folder does not change while a program runs
def describe(folder: Path, image_size: int | None = None) -> Description:
    """Read the JSON files of `folder`; `image_size` in place of its own side of images. Raises `UserError` where they
    are not of a model that is supported."""
    file = folder / "config.json"
    content = read_json(file)
    kind = content.get("model_type")
    name = MODEL_TYPES.get(kind) if isinstance(kind, str) else None
    if name is None:
        code = ", nor is code that a model brings along (auto_map)" if content.get("auto_map") else ""
        raise UserError(
            f"{file}: model_type={json.dumps(kind)} is not supported by encoder=vit{code}; allowed: "
            f"{', '.join(sorted(MODEL_TYPES))}"
        )
    whole = VISION[name].model_types.index(str(kind)) == 1 and name in ("clip", "siglip")
    if whole:
        check_settings(file, content, WHOLE)
        inner = content.get("vision_config")
        if not isinstance(inner, dict):
            raise UserError(f"{file}: vision_config={json.dumps(inner)} is not allowed; an object with the settings")
    settings: Mapping[str, Any] = {**content["vision_config"]} if whole else content
    check_settings(file, settings, TOWER)
    defaults = BASE | DEFAULTS[name] | ({"hidden_act": "gelu_pytorch_tanh"} if name == "siglip" else {})

    def number(key: str, lowest: int = 1, whole: bool = True, default: Any = None) -> Any:
        value = settings.get(key, defaults.get(key, default))
        largest = MAX_SIZES.get(key, MAX_OTHER_SIZE)
        fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not fits or not (lowest <= value <= largest if whole else 0 < value <= largest):
            what = f"a whole number from {lowest}" if whole else "a number above 0"
            raise UserError(f"{file}: {key}={json.dumps(value)} is not allowed; {what} to {largest}")
        return value

    if number("num_channels", default=3) != 3:
        raise UserError(f"{file}: num_channels={settings['num_channels']} is not supported; allowed: 3")
    hidden, heads, patch = number("hidden_size"), number("num_attention_heads"), number("patch_size")
    trained = number("image_size") // patch
    if hidden % heads or not trained:
        raise UserError(f"{file}: hidden_size={hidden} has to be a multiple of num_attention_heads={heads}, and "
                        f"image_size={settings.get('image_size')} at least patch_size={patch}")  # fmt: skip
    intermediate = number("mlp_ratio") * hidden if name == "dinov2" else number("intermediate_size")
    if name == "dinov2" and settings.get("use_swiglu_ffn"):
        name, intermediate = "dinov2_swiglu", (int(intermediate * 2 / 3) + 7) // 8 * 8
    family = VISION[name]
    rule, mean, std = read_rule(folder, family.processor, number("image_size"), image_size)
    height, width = rule.crop
    if height % patch or width % patch:
        raise UserError(
            f"{folder}: images of {height} × {width} pixels cannot be divided into patches of {patch}; give "
            f"encoder.image_size, a multiple of {patch}"
        )
    architecture = Architecture(
        family=name,
        layers=number("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        intermediate=intermediate,
        patch=patch,
        grid=(height // patch, width // patch),
        channels=3,
        function=_function(file, settings, name),
        layer_norm_eps=float(number("layer_norm_eps", whole=False)),
        class_token=family.class_token is not None,
        registers=number("num_register_tokens", 0, default=4) if kind == "dinov2_with_registers" else 0,
        layer_scale=float(number("layerscale_value", whole=False, default=1.0)) if family.layer_scale else 0.0,
        position="learned",
        pooling=family.pooling,
    )
    projected = None
    if family.projected and _has_projection(folder, family.projected):
        projected = content.get("projection_dim", 512)
        if type(projected) is not int or not 0 < projected <= MAX_OTHER_SIZE:
            raise UserError(f"{file}: projection_dim={json.dumps(projected)} is not allowed; a whole number above 0")
    return Description(architecture, trained, kind == "dinov2_with_registers", rule, mean, std, projected)


def _function(file: Path, settings: Mapping[str, Any], name: str) -> Function:
    family = VISION[name]
    if "gate" in family.names:
        return family.gelu
    given = settings.get("hidden_act", FUNCTIONS[family.gelu][1][0])
    for function, (_, theirs) in FUNCTIONS.items():
        if given in theirs:
            return function
    allowed = ", ".join(name for _, theirs in FUNCTIONS.values() for name in theirs)
    raise UserError(f"{file}: hidden_act={json.dumps(given)} is not supported; allowed: {allowed}")


def _has_projection(folder: Path, name: str) -> bool:
    found: set[str] = set()

    def look(tensor: str) -> bool:
        found.add(tensor)
        return False

    for file in huggingface.weights_files(folder):
        huggingface.read_tensors(file, look)
    return f"{name}.weight" in found


def load(folder: Path, described: Description, architecture: Architecture) -> dict[ParameterPath, np.ndarray]:
    """The float32 parameters of our `ViT` with that architecture, and of its projection where the folder has one.

    Args:
        folder: of the model.
        described: what `describe` says of it.
        architecture: the same, maybe with another pooling.

    Raises `UserError` for a missing or broken file, and for a tensor that is missing or of the wrong shape.
    """
    family = architecture.described
    file = huggingface.weights_files(folder)[0]
    wanted = {name.partition("#")[0] for _, name, _ in tensors(architecture)}
    projection = f"{family.projected}.weight"

    def bare(stored: str) -> str:
        return stored.removeprefix("dinov2_with_registers.").removeprefix(family.prefix)

    def is_wanted(stored: str) -> bool:
        if bare(stored).startswith(f"{family.blocks}.") and bare(stored) not in wanted:
            raise UserError(
                f"{file} has tensor {stored}, which a {architecture.family} encoder of {architecture.layers} layers "
                "does not have"
            )
        return bare(stored) in wanted or stored == projection

    found = {
        bare(name): array
        for part in huggingface.weights_files(folder)
        for name, array in huggingface.read_tensors(part, is_wanted).items()
    }
    parameters: dict[ParameterPath, np.ndarray] = {}
    if (kernel := found.pop(projection, None)) is not None and described.projected is not None:
        if kernel.shape != (described.projected, architecture.hidden):
            raise UserError(
                f"{file}: tensor {projection} has shape {kernel.shape}, but config.json asks for "
                f"{(described.projected, architecture.hidden)}"
            )
        parameters["projection", "kernel"] = np.ascontiguousarray(kernel.T, np.float32)
    table = list(tensors(architecture))
    for path, name, _ in table:
        if name in found and len(path) < 3:
            found[name] = flat(path, found[name], architecture, described)
    return parameters | huggingface.pick(file, found, table)


def flat(path: ParameterPath, array: np.ndarray, a: Architecture, described: Description) -> np.ndarray:
    """A tensor of patches or tokens with the axes of ours: kernels of patches as [hidden, patch² · channels], tokens
    without an axis of 1, positions for the grid of `a`."""
    if path == ("patches", "kernel") and array.ndim == 4:
        return array.transpose(0, 2, 3, 1).reshape(len(array), -1)
    if path in (("class_token",), ("pool", "probe")):
        return array.reshape(-1) if array.shape[-1:] == (array.size,) else array
    if path == ("registers",) and array.ndim == 3 and len(array) == 1:
        return array.reshape(array.shape[1:])
    if path == ("position",):
        table = array[0] if array.ndim == 3 and len(array) == 1 else array
        before, side = int(a.class_token), described.trained_grid
        if table.ndim == 2 and len(table) == before + side**2:
            places = resample(table[before:].astype(np.float32), (side, side), a.grid, described.antialias)
            array = np.concatenate([table[:before].astype(np.float32), places])
        else:
            array = table
    return array
