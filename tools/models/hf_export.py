"""Makes a Hugging Face model directory from a GGUF: config.json, model.safetensors,
tokenizer.json and tokenizer_config.json. For engines and for checking the forward pass
against transformers; the weights are the bf16 reference of every measurement.
"""

import json
import pathlib

import safetensors.torch
import torch
from tokenizers import processors

from tools.models import fetch, gguf_reader, tokenizer

_CLASSES = {
    "llama": ("LlamaForCausalLM", "llama"), "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"), "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
}

_TOP = {"token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
_BLOCK = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj",
          "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
          "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
          "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
          "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_FFN_NORM = {False: {"ffn_norm": "post_attention_layernorm"},
             True: {"post_attention_norm": "post_attention_layernorm",
                    "ffn_norm": "pre_feedforward_layernorm",
                    "post_ffw_norm": "post_feedforward_layernorm"}}


def export(gguf_path, folder):
    """Writes the directory; returns its path. Existing files of these names go."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = gguf_reader.GgufFile(gguf_path)
    config = file.config(fetch.title_of(gguf_path))
    vocabulary = file.vocabulary()
    weights = {k: v.to(torch.bfloat16) for k, v in hf_weights(config, file.weights()).items()}
    safetensors.torch.save_file(weights, str(folder / "model.safetensors"), {"format": "pt"})
    _write(folder / "config.json",
           {**hf_config(config), "bos_token_id": vocabulary.bos, "eos_token_id": vocabulary.eos,
            "torch_dtype": "bfloat16"})
    _export_tokenizer(tokenizer.build(vocabulary), vocabulary, config, folder)
    return folder


def hf_config(config):
    """config.json of a ModelConfig, as a dict."""
    rope = config.layers[-1].rope
    if not rope.is_plain:
        raise ValueError("RoPE with scaling is not exported")
    name, model_type = _CLASSES[config.arch]
    out = {
        "architectures": [name], "model_type": model_type, "vocab_size": config.vocab,
        "hidden_size": config.hidden, "intermediate_size": config.ffn,
        "num_hidden_layers": len(config.layers), "num_attention_heads": config.q_heads,
        "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps, "max_position_embeddings": config.context,
        "tie_word_embeddings": config.tied, "attention_bias": False,
        "rope_theta": rope.theta, "hidden_act": "silu",
    }
    if config.arch == "gemma3":
        local = config.layers[0]
        out.update(hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh",
                   query_pre_attn_scalar=config.head_dim, sliding_window=local.window,
                   rope_local_base_freq=local.rope.theta,
                   layer_types=["sliding_attention" if layer.window else "full_attention"
                                for layer in config.layers])
    return out


def hf_weights(config, weights):
    """Hugging Face name -> tensor, from GGUF names (q and k un-permuted, as
    GgufFile.weights gives them). Gemma's norms lose the one that a GGUF adds."""
    block = {**_BLOCK, **_FFN_NORM[config.sandwich_norm]}
    out = {}
    for name, x in weights.items():
        if name in _TOP:
            renamed = _TOP[name]
        else:
            _, layer, part, kind = name.split(".")
            renamed = f"model.layers.{layer}.{block[part]}.{kind}"
        if config.arch == "gemma3" and "norm" in renamed:
            x = x - 1
        out[renamed] = x.contiguous()
    return out


def _export_tokenizer(backend, vocabulary, config, folder):
    token = lambda i: vocabulary.tokens[i] if 0 <= i < len(vocabulary.tokens) else None
    if vocabulary.add_bos:
        bos = token(vocabulary.bos)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, vocabulary.bos)])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": token(vocabulary.bos),
                "eos_token": token(vocabulary.eos), "model_max_length": config.context,
                "clean_up_tokenization_spaces": False}
    if vocabulary.chat_template:
        settings["chat_template"] = vocabulary.chat_template
    _write(folder / "tokenizer_config.json", settings)


def _write(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")
