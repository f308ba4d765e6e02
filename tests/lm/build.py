"""Small models and tokenizers for the tests: random weights from transformers, written in every layout we read."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.processes import roclab as roclab

TINY = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 2,
    "tie_word_embeddings": False, "initializer_range": 0.2,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def peer(kind: str, **changes: Any) -> Any:
    """A transformers model of `kind` with random weights: norms, biases and all."""
    import transformers

    classes = {"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama", "mistral": "Mistral"}
    values: dict[str, Any] = {**TINY, **changes}
    if kind == "qwen3":
        values.setdefault("head_dim", 32)  # not hidden_size / heads: Qwen3 sets it apart
    if kind == "mistral":
        values.setdefault("sliding_window", None)
    config = getattr(transformers, classes[kind] + "Config")(**values)
    torch.manual_seed(7)
    model = getattr(transformers, classes[kind] + "ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.5)
    return model


def peer_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def byte_vocabulary() -> tuple[list[str], list[list[str]]]:
    """Tokens and merges of a byte-level BPE: control names first, then the 256 bytes, then three merged words."""
    from roclab.lm.text.tokenizer import bytes_to_unicode

    merges = [["t", "h"], ["th", "e"], ["Ġ", "the"]]
    return [*CONTROL, *bytes_to_unicode().values(), *("".join(m) for m in merges)], merges


def tokenizer_definition() -> dict[str, Any]:
    tokens, merges = byte_vocabulary()
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{**flags, "id": i, "content": name, "special": True} for i, name in enumerate(CONTROL)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges,
        },
    }  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_definition()), encoding="utf-8")
    config = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def write_folder(folder: Path, model: Any, **options: Any) -> Path:
    """A Hugging Face directory; `max_shard_size` makes several files."""
    model.save_pretrained(folder, **options)
    write_tokenizer(folder)
    return folder


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def gguf_name(name: str) -> str:
    stem, _, leaf = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[part]}.{leaf}"
    return f"{GGUF_NAMES[stem]}.{leaf}"


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k of Llama models: halves of each head become neighbours."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def add_tokenizer(writer: Any, pre: str = "gpt-2") -> None:
    tokens, merges = byte_vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL)))
    writer.add_token_merges([" ".join(m) for m in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# What a random block's scales are set to, by their place in the block: weights of about 0.1.
K_SCALES = {"Q2_K": {80: 3e-3, 82: 5e-3}, "Q3_K": {108: 8e-4}, "IQ4_NL": {0: 8e-4}, "IQ4_XS": {0: 3e-5},
            "Q4_K": {0: 2e-4, 2: 1.5e-3}, "Q5_K": {0: 1e-4, 2: 1.5e-3}, "Q6_K": {208: 3e-5}}  # fmt: skip


def as_blocks(data: np.ndarray, block_type: str) -> np.ndarray:
    """A matrix in a GGUF block type; types that the `gguf` package cannot write hold random weights."""
    import gguf

    kind = gguf.GGMLQuantizationType[block_type]
    if block_type not in K_SCALES:
        return gguf.quants.quantize(data, kind)
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(data.size).integers(0, 256, (data.size // weights, size), dtype=np.uint8)
    for at, scale in K_SCALES[block_type].items():
        blocks[:, at : at + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return blocks.reshape(data.shape[0], -1)


def write_gguf(
    path: Path,
    model: Any,
    rope_freqs: np.ndarray | None = None,
    changes: dict[str, Any] | None = None,
    block_type: str | None = None,
) -> Path:
    """The model as the `gguf` package writes it, with the layout of llama.cpp's converter: in float32, or its matrices
    in `block_type`. `changes` to its metadata: another value, or None to leave a key out."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    if config.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    if config.rope_parameters["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
        writer.add_rope_scaling_orig_ctx_len(config.rope_parameters["original_max_position_embeddings"])
    add_tokenizer(writer)
    for key, value in (changes or {}).items():
        writer.kv_data[0].pop(key, None)
        if value is not None:
            add = {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}[type(value)]
            add(key, value)
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs.astype(np.float32))
    for name, tensor in model.named_parameters():  # a tied head is not listed, nor written
        data = tensor.detach().numpy()
        if config.model_type == "llama" and ".q_proj." in name:
            data = permuted(data, config.num_attention_heads)
        elif config.model_type == "llama" and ".k_proj." in name:
            data = permuted(data, config.num_key_value_heads)
        data = np.ascontiguousarray(data)
        if block_type and data.ndim == 2:
            raw = as_blocks(data, block_type)
            writer.add_tensor(gguf_name(name), raw, raw_dtype=gguf.GGMLQuantizationType[block_type])
        else:
            writer.add_tensor(gguf_name(name), data)
    finish(writer)
    return path


def assert_one_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, and one line on stderr that says what is wrong."""
    assert result.returncode == 2, (result.returncode, result.stderr)
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert [line.startswith("roclab: ") for line in lines] == [False] * (len(lines) - 1) + [True], result.stderr
    for word in words:
        assert word in lines[-1], (word, lines[-1])


def learn_by_heart(model: Any, texts: list[tuple[list[int], list[int]]], lr: float, steps: int) -> Any:
    """Train a small RocLM until it gives each prompt's reply; `texts` are (prompt ids, reply ids)."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        loss = torch.zeros(())
        for prompt, reply in texts:
            logits = model(torch.tensor([prompt + reply]))[0, len(prompt) - 1 : -1]
            loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(reply))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1, "the small model has not learned its lines"
    return model.eval()
