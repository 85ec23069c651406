"""Names of a GGUF file's tensors: a diffusion model's are its own, a text encoder's are llama.cpp's."""

from __future__ import annotations

from collections.abc import Mapping

#: What `general.architecture` is of text encoders.
_T5 = ("t5", "t5encoder")
_LLAMA = ("llama", "qwen2vl", "qwen3", "qwen3vl")

# llama.cpp's parts of a name, and transformers'. The first that fits counts, for each part.
_T5_PARTS: Mapping[str, str] = {
    "token_embd": "shared",
    "output_norm": "final_layer_norm",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "attn_norm": "layer.0.layer_norm",
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}
_LLAMA_PARTS: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def own_name(name: str, architecture: object) -> str:
    """The name that a model's own program has for a tensor.

    Args:
        name: In the file.
        architecture: What the file says its model is.
    """
    parts = name.split(".")
    if architecture in _T5:
        # enc.blk.0.attn_q.weight, enc.output_norm.weight, token_embd.weight
        parts = [
            "encoder" if part == "enc" else "block" if part == "blk" else part for part in parts
        ]
        return ".".join(_T5_PARTS.get(part, part) for part in parts)
    if architecture in _LLAMA:
        parts = ["model.layers" if part == "blk" else part for part in parts]
        return ".".join(_LLAMA_PARTS.get(part, part) for part in parts)
    return name


def turned_heads(name: str, architecture: object, values: Mapping[str, object]) -> int:
    """In how many heads llama.cpp turned the rows of a tensor, by its own name; 0 if it did not.

    Of llama alone: the halves of each head of queries and keys lie between each other there.
    """
    if architecture != "llama":
        return 0
    for part, count, usual in (
        ("q_proj", "head_count", 32),
        ("k_proj", "head_count_kv", 8),
    ):
        if f".{part}." in name:
            heads = values.get(f"llama.attention.{count}", usual)
            return heads if isinstance(heads, int) and heads > 0 else usual
    return 0
