"""The settings of published models: each key is known, and the sizes are theirs."""

from pathlib import Path
from typing import Any

import pytest

from mrl_jax.encoders import huggingface

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {  # what config.json of the model on the hub says, and its sizes
    "answerdotai/ModernBERT-base": ("""{
        "architectures": ["ModernBertForMaskedLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 50281, "classifier_activation": "gelu", "classifier_bias": false, "classifier_dropout": 0.0,
        "classifier_pooling": "mean", "cls_token_id": 50281, "decoder_bias": true, "deterministic_flash_attn": false,
        "embedding_dropout": 0.0, "eos_token_id": 50282, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0,
        "gradient_checkpointing": false, "hidden_activation": "gelu", "hidden_size": 768,
        "initializer_cutoff_factor": 2.0, "initializer_range": 0.02, "intermediate_size": 1152, "layer_norm_eps": 1e-05,
        "local_attention": 128, "local_rope_theta": 10000.0, "max_position_embeddings": 8192, "mlp_bias": false,
        "mlp_dropout": 0.0, "model_type": "modernbert", "norm_bias": false, "norm_eps": 1e-05,
        "num_attention_heads": 12, "num_hidden_layers": 22, "pad_token_id": 50283,
        "position_embedding_type": "absolute", "sep_token_id": 50282, "tie_word_embeddings": true,
        "torch_dtype": "float32", "transformers_version": "4.47.0.dev0", "vocab_size": 50368}""",
        {"layers": 22, "hidden": 768, "window": 128, "global_every": 3, "rope_theta": 160000.0,
         "local_theta": 10000.0, "layer_norm_eps": 1e-5, "positions": 8192}),
    "nomic-ai/nomic-embed-text-v1.5": ("""{
        "activation_function": "swiglu", "architectures": ["NomicBertModel"], "attn_pdrop": 0.0,
        "auto_map": {"AutoModel": "x"}, "bos_token_id": null, "causal": false, "dense_seq_output": true,
        "embd_pdrop": 0.0, "eos_token_id": null, "fused_bias_fc": true, "fused_dropout_add_ln": true,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-12, "max_trained_positions": 2048, "mlp_fc1_bias": false,
        "mlp_fc2_bias": false, "model_type": "nomic_bert", "n_embd": 768, "n_head": 12, "n_inner": 3072, "n_layer": 12,
        "n_positions": 8192, "pad_vocab_size_multiple": 64, "parallel_block": false, "parallel_block_tied_norm": false,
        "prenorm": false, "qkv_proj_bias": false, "reorder_and_upcast_attn": false, "resid_pdrop": 0.0,
        "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": false,
        "rotary_emb_scale_base": null, "rotary_scaling_factor": null, "scale_attn_by_inverse_layer_idx": false,
        "scale_attn_weights": true, "summary_activation": null, "summary_first_dropout": 0.0,
        "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true, "torch_dtype": "float32",
        "transformers_version": "4.34.0", "type_vocab_size": 2, "use_cache": true, "use_flash_attn": true,
        "use_rms_norm": false, "use_xentropy": true, "vocab_size": 30528}""",
        {"layers": 12, "hidden": 768, "heads": 12, "intermediate": 3072, "positions": 8192, "rope_theta": 1000.0,
         "token_types": 2}),
    "Qwen/Qwen3-Embedding-0.6B": ("""{
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151643, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 32768,
        "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.3", "use_cache": true, "use_sliding_window": false, "vocab_size": 151669}""",
        {"hidden": 1024, "heads": 16, "kv_heads": 8, "head_size": 128, "rope_theta": 1e6, "causal": True}),
}  # fmt: skip


@pytest.mark.parametrize("hub", PUBLISHED)
def test_the_settings_of_a_published_model_are_all_known(
    hub: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, expected = PUBLISHED[hub]
    (tmp_path / "config.json").write_text(content)
    sizes = huggingface.describe(tmp_path).architecture
    assert {key: getattr(sizes, key) for key in expected} == expected
    assert "is not known" not in capsys.readouterr().err
