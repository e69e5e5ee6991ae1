"""What the JSON files of a model folder say: the one table of their keys, and the reader that keeps to it.

Folders are those of sentence-transformers and transformers. `modules.json` names the modules and their folders; without
it a folder holds a transformer, pooled by its mean. Each key of each file is one of these:

    used       it changes a vector, and is read
    only       it would change a vector: other values than those of the table are refused by name
    harmless   it does not change a vector (training, generation of text, output classes, notes)

A key that the table does not have is named in a warning, and left out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

from mrl_jax.data.prompts import DEFAULT, ROLES, Prompts
from mrl_jax.encoders.pooling import POOLINGS, Pooling
from mrl_jax.system.console import say
from mrl_jax.system.errors import UserError

OTHER_POOLING = "pooling_mode_mean_sqrt_len_tokens"  # as older files name it
SPECIAL_TOKENS = "unk_token sep_token pad_token cls_token mask_token bos_token eos_token"
STATIC = "StaticEmbedding"  # the module of a table of token vectors
MAX_WIDTH = 1_000_000  # of a linear map; a file with more is damaged
TEXTS_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
NOTHING: tuple[Any, ...] = (None, {}, [], False)  # values that leave a setting out


@dataclass(frozen=True)
class Keys:
    """The keys of a file, separated by blanks."""

    used: str
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # key → values allowed, the default first
    harmless: str = ""


KEYS: dict[str, Keys] = {
    "config.json": Keys(
        used="model_type vocab_size num_hidden_layers hidden_size num_attention_heads intermediate_size "
        "max_position_embeddings type_vocab_size layer_norm_eps pad_token_id dim n_layers n_heads hidden_dim "
        "hidden_act activation hidden_activation norm_eps rms_norm_eps local_attention global_attn_every_n_layers "
        "layer_types num_key_value_heads head_dim is_causal rope_parameters rope_theta global_rope_theta "
        "local_rope_theta n_layer n_embd n_head n_inner n_positions layer_norm_epsilon rotary_emb_base "
        "d_model d_kv d_ff num_layers num_heads feed_forward_proj",
        only={
            "relative_attention_num_buckets": (32,),
            "relative_attention_max_distance": (128,),
            "dense_act_fn": ("relu", "gelu_new", None),  # as feed_forward_proj says
            "position_embedding_type": ("absolute", None),
            "is_decoder": (False,),
            "add_cross_attention": (False,),
            "attention_bias": (False, None),
            "mlp_bias": (False, None),
            "norm_bias": (False, None),
            "use_sliding_window": (False, None),
            "rope_scaling": NOTHING,
            "partial_rotary_factor": (1.0, None),
            # nomic_bert in its own older words
            "activation_function": ("swiglu", None),
            "causal": (False, None),
            "mlp_fc1_bias": (False, None),
            "mlp_fc2_bias": (False, None),
            "parallel_block": (False, None),
            "parallel_block_tied_norm": (False, None),
            "prenorm": (False, None),
            "qkv_proj_bias": (False, None),
            "rotary_emb_fraction": (1.0, None),
            "rotary_emb_interleaved": (False, None),
            "rotary_emb_scale_base": NOTHING,
            "rotary_scaling_factor": NOTHING,
            "scale_attn_by_inverse_layer_idx": (False, None),
            "scale_attn_weights": (True, None),
            "use_rms_norm": (False, None),
            "pruned_heads": NOTHING,
            "quantization_config": NOTHING,
        },
        # A dtype of less precision is that of the stored numbers: everything is computed in float32.
        harmless="architectures attention_probs_dropout_prob hidden_dropout_prob classifier_dropout initializer_range "
        "dropout attention_dropout qa_dropout seq_classif_dropout sinusoidal_pos_embds tie_weights_ "
        "bos_token_id eos_token_id sep_token_id cls_token_id dtype torch_dtype transformers_version "
        "use_cache tie_word_embeddings gradient_checkpointing chunk_size_feed_forward output_past output_attentions "
        "output_hidden_states return_dict id2label label2id num_labels problem_type finetuning_task directionality "
        "pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type "
        "_name_or_path _attn_implementation_autoset _num_labels torchscript use_bfloat16 model_name language name "
        "matryoshka_dims is_matryoshka matryoshka_dimensions normalized "
        "tokenizer_class embedding_dropout mlp_dropout classifier_activation classifier_bias "
        "classifier_pooling decoder_bias deterministic_flash_attn initializer_cutoff_factor reference_compile "
        "repad_logits_with_grad sparse_prediction sparse_pred_ignore_index max_window_layers sliding_window "
        "attn_pdrop embd_pdrop resid_pdrop auto_map dense_seq_output fused_bias_fc fused_dropout_add_ln "
        "last_layer_subset max_trained_positions pad_vocab_size_multiple reorder_and_upcast_attn summary_activation "
        "summary_first_dropout summary_proj_to_labels summary_type summary_use_proj use_flash_attn use_xentropy "
        "dropout_rate initializer_factor is_encoder_decoder num_decoder_layers decoder_start_token_id is_gated_act "
        "scale_decoder_outputs task_specific_params",
    ),
    "tokenizer_config.json": Keys(
        used="tokenizer_class model_max_length max_len padding_side chat_template do_lower_case strip_accents "
        "tokenize_chinese_chars truncation_side add_prefix_space added_tokens_decoder additional_special_tokens "
        f"extra_special_tokens extra_ids {SPECIAL_TOKENS}",
        only={
            "do_basic_tokenize": (True, None),
            "never_split": NOTHING,
            "split_special_tokens": NOTHING,
        },
        harmless="name_or_path special_tokens_map_file tokenizer_file vocab_file backend is_local local_files_only "
        "clean_up_tokenization_spaces model_input_names processor_class use_fast wordpieces_prefix max_length stride "
        "padding truncation truncation_strategy pad_to_multiple_of pad_token_type_id return_token_type_ids "
        "model_specific_special_tokens errors sp_model_kwargs "
        # With a tokenizer.json, transformers 5 leaves these out: its own steps add the tokens.
        "add_bos_token add_eos_token",
    ),
    "sentence_bert_config.json": Keys(
        used="max_seq_length do_lower_case",
        only={
            "transformer_task": ("feature-extraction", None),
            "modality_config": (TEXTS_ONLY, None),
            "module_output_name": ("token_embeddings", None),
            "tokenizer_name_or_path": NOTHING,
            **dict.fromkeys(
                ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "processing_kwargs", "config_args",
                 "config_kwargs"), NOTHING
            ),
        },
        # The lengths and the expansion of queries are not those of `encode`.
        harmless="unpad_inputs query_length document_length query_expansion cache_dir backend",
    ),
    "config_sentence_transformers.json": Keys(
        used="prompts default_prompt_name",
        only={"model_type": ("SentenceTransformer", None)},
        # Similarities are cosines here, and dims are chosen at each use.
        harmless="__version__ similarity_fn_name truncate_dim",
    ),
    "Pooling": Keys(
        used=f"pooling_mode include_prompt {' '.join(POOLINGS.values())} {OTHER_POOLING}",
        harmless="embedding_dimension word_embedding_dimension",
    ),
    "Dense": Keys(
        used="in_features out_features bias",
        only={
            "activation_function": ("torch.nn.modules.linear.Identity",),  # without the key, tanh
            "module_input_name": ("sentence_embedding", None),
            "module_output_name": ("sentence_embedding", None),
            "use_residual": (False, None),
        },
    ),
    # The length of an embedding is 1 after `encode`, with and without it.
    "Normalize": Keys(used="", only={"module_input_name": ("sentence_embedding", None),
                                     "module_output_name": ("sentence_embedding", None)}),
}  # fmt: skip


@dataclass(frozen=True)
class Modules:
    """The folders of the modules of a pipeline."""

    transformer: Path
    pooling: Path | None = None  # None: by its mean
    dense: Path | None = None


def read_settings(file: Path, kind: str | None = None) -> dict[str, Any]:
    """The content of a file whose keys are those of `KEYS[kind]` (by default of its own name); {} if there is none.

    Raises `UserError` for a value that is not supported; names keys that are not known in a warning.
    """
    if not file.exists():
        return {}
    content = read_json(file)
    check_settings(file, content, KEYS[kind or file.name])
    return content


def check_settings(file: Path, content: Mapping[str, Any], keys: Keys) -> None:
    """As `read_settings`, of what a file holds."""
    for key, values in keys.only.items():
        if key in content and content[key] not in values:
            listed = [json.dumps(value) for value in values if value is not None]
            allowed = "to leave it out" if values in (NOTHING, ()) else ", ".join(listed)
            raise UserError(f"{file}: {key}={json.dumps(content[key])} is not supported; allowed: {allowed}")
    known = {*keys.used.split(), *keys.only, *keys.harmless.split()}
    if unknown := [key for key, value in content.items() if key not in known and value is not None]:
        warn(f"{file}: what {', '.join(unknown)} means is not known here, so it is left out")


@cache  # once per process
def warn(message: str) -> None:
    say(message)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`, or a `UserError`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing; a folder of weights needs config.json and model.safetensors") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}, not a JSON object")
    return content


def flag(file: Path, content: Mapping[str, Any], key: str) -> bool | None:
    """A setting that is true, false or absent. Raises `UserError` for another value."""
    value = content.get(key)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{file}: {key}={json.dumps(value)} is not allowed; true or false")
    return value


def list_modules(folder: Path) -> list[tuple[str, str]]:
    """The class and the folder of each module that modules.json names. Raises `UserError` where it cannot be read."""
    file, listed = folder / "modules.json", []
    try:
        for i, module in enumerate(json.loads(file.read_text(encoding="utf-8"))):
            kind = str(module["type"]).rsplit(".", 1)[-1]
            listed.append((kind, str(module.get("path", f"{i}_{kind}" if i else ""))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error!r})") from error
    for _, path in listed:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise UserError(f"{file}: path={json.dumps(path)} is not allowed; a folder within {folder}")
    return listed


def read_modules(folder: Path) -> Modules:
    """The modules that modules.json names: a Transformer, a Pooling, and maybe a Dense and a Normalize.

    Raises `UserError` for any other pipeline: a step must not be left out.
    """
    file = folder / "modules.json"
    if not file.exists():
        pooling = folder / "1_Pooling"
        if not (pooling / "config.json").exists():
            return Modules(folder)
        if read_pooling(pooling)[0] != "mean":
            warn(f"{file} is missing, so other programs will not read {pooling / 'config.json'}, as is done here")
        return Modules(folder, pooling)
    listed = list_modules(folder)
    allowed = ("Transformer", "Pooling", "Dense", "Normalize")
    for kind, _ in listed:
        if kind not in allowed:
            hint = "; encoder=static reads it" if kind == STATIC else ""
            raise UserError(f"{file}: module {kind} is not supported; allowed: {', '.join(allowed)}{hint}")
    kinds = [kind for kind, _ in listed]
    if kinds != [kind for kind in allowed if kind in kinds] or kinds[:1] != ["Transformer"]:
        raise UserError(
            f"{file}: {', '.join(kinds) or 'no module'} is not supported; allowed: Transformer, Pooling, then Dense or "
            "not, then Normalize or not"
        )
    at = {kind: folder / path for kind, path in listed}
    if "Pooling" not in at:
        warn(f"{file} names no module Pooling, without which other programs have no vector; the mean is taken here")
    if "Normalize" in at:
        read_settings(at["Normalize"] / "config.json", "Normalize")
    return Modules(at["Transformer"], at.get("Pooling"), at.get("Dense"))


def read_pooling(folder: Path | None) -> tuple[Pooling, bool]:
    """The pooling from the folder of a module Pooling, and whether the tokens of a prompt are pooled too."""
    if folder is None:
        return "mean", True
    file = folder / "config.json"
    if not file.exists():
        raise UserError(f"{file} is missing; modules.json names it, and it says how the vectors of tokens become one")
    config = read_settings(file, "Pooling")
    modes = config.get("pooling_mode")  # newer files name the mode, older ones have a flag per mode
    if modes is None:
        old = {key: pooling for pooling, key in POOLINGS.items()} | {OTHER_POOLING: "mean_sqrt_len_tokens"}
        modes = [pooling for key, pooling in old.items() if flag(file, config, key)]
    modes = modes if isinstance(modes, list) else [modes]
    if len(modes) != 1 or modes[0] not in [*POOLINGS]:
        found, allowed = " + ".join(map(str, modes)) or "none", ", ".join(POOLINGS)
        raise UserError(f"{file}: pooling {found} is not supported; allowed: {allowed}")
    return cast(Pooling, modes[0]), flag(file, config, "include_prompt") is not False


def read_dense(folder: Path | None, hidden: int) -> int | None:
    """The width that the module Dense in `folder` maps an embedding of `hidden` numbers to; None without one."""
    if folder is None:
        return None
    file = folder / "config.json"
    config = read_settings(file, "Dense")
    if "activation_function" not in config:  # sentence-transformers then takes tanh
        raise UserError(f"{file} lacks activation_function; allowed: {KEYS['Dense'].only['activation_function'][0]}")
    width = config.get("out_features")
    if config.get("in_features") != hidden or type(width) is not int or not 0 < width <= MAX_WIDTH:
        raise UserError(
            f"{file}: in_features={json.dumps(config.get('in_features'))}, out_features={json.dumps(width)} is not "
            f"allowed; {hidden} and a whole number above 0, at most {MAX_WIDTH}"
        )
    return width


def read_prompts(folder: Path) -> dict[str, str]:
    """The prompts of config_sentence_transformers.json as `data.prompts` has them: `default` is the one that `encode`
    puts before texts by default, and those of queries and documents are left out where nothing would change."""
    file = folder / "config_sentence_transformers.json"
    config = read_settings(file)
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise UserError(f"{file}: prompts={json.dumps(prompts)} is not allowed; a text for each name")
    if default is not None and default not in [*prompts]:
        raise UserError(
            f"{file}: default_prompt_name={json.dumps(default)} is not in prompts; allowed: "
            f"{', '.join(prompts) or 'null'}"
        )
    if prompts.get(DEFAULT) and default != DEFAULT:
        warn(f"{file}: the prompt {DEFAULT} is left out, which default_prompt_name does not name")
    texts = {name: text or "" for name, text in prompts.items() if name != DEFAULT}
    if default is not None and prompts[default]:
        texts[DEFAULT] = prompts[default]
    for role in (role for role in ROLES if role in prompts):
        others = {name: text for name, text in texts.items() if name != role}
        texts = others if Prompts(others).of(role) == texts[role] else texts
    return texts


def read_max_length(folder: Path, positions: int) -> int:
    """Tokens per text: `max_seq_length` of sentence_bert_config.json, else `model_max_length` of tokenizer_config.json
    up to the number of positions. Raises `UserError` for what is not a length."""
    file = folder / "sentence_bert_config.json"
    value = read_settings(file).get("max_seq_length")
    if value is not None:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= positions:
            raise UserError(f"{file}: max_seq_length={value} is not allowed; a whole number from 1 to {positions}")
        return value
    file = folder / "tokenizer_config.json"
    config = read_settings(file)
    for key in ("model_max_length", "max_len"):
        if (value := config.get(key)) is not None:
            if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 1:
                raise UserError(f"{file}: {key}={json.dumps(value)} is not allowed; a whole number above 0")
            return int(min(value, positions))
    return positions
