"""A GGUF file with random weights of a known shape: speed and memory can be measured without the real weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from roclab.errors import RocLabError
from roclab.lm.model import RocLMConfig

SHAPES = {"qwen3-0.6b": RocLMConfig()}  # Qwen3-0.6B is the configuration's default
KINDS = {"int8": "Q8_0", "int4": "Q4_1"}


def write_random(path: Path, name: str, seed: int = 0) -> None:
    """Write the shape `name`, as "qwen3-0.6b:int8", to `path`. int4 has its embedding, which is the head as well, in
    Q8_0. Needs the `gguf` package. Raises RocLabError for a name that is none."""
    shape, _, bits = name.partition(":")
    if shape not in SHAPES or bits not in KINDS:
        known = ", ".join(f"{s}:{b}" for s in SHAPES for b in KINDS)
        raise RocLabError(f"--random {name}: choose one of {known}")
    try:
        import gguf
    except ImportError:
        raise RocLabError("--random needs the gguf package: pip install gguf") from None
    c, rng = SHAPES[shape], np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "qwen3", use_temp_file=False)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([_token(i) for i in range(c.vocab_size)])
    writer.add_token_types([1] * c.vocab_size)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(c.eos_token_ids[0])

    def matrix(name: str, rows: int, columns: int, kind: str) -> None:
        """Random quants; scales that give weights of about 0.02."""
        head = 4 if kind == "Q4_1" else 2
        blocks = rng.integers(0, 256, (rows * columns // 32, head + (32 if kind == "Q8_0" else 16)), dtype=np.uint8)
        scale = np.float16(0.02 / (73 if kind == "Q8_0" else 4.6))
        ends = [scale] if kind == "Q8_0" else [scale, np.float16(-7.5 * float(scale))]
        blocks[:, :head] = np.frombuffer(np.array(ends, np.float16).tobytes(), np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType[kind])

    def ones(name: str, size: int) -> None:
        writer.add_tensor(name, np.ones(size, np.float32))

    kind, D, F = KINDS[bits], c.hidden_size, c.intermediate_size
    H, K = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    matrix("token_embd.weight", c.vocab_size, D, "Q8_0")
    ones("output_norm.weight", D)
    for i in range(c.num_hidden_layers):
        for leaf, rows, columns in (
            ("attn_q", H, D), ("attn_k", K, D), ("attn_v", K, D), ("attn_output", D, H),
            ("ffn_gate", F, D), ("ffn_up", F, D), ("ffn_down", D, F),
        ):  # fmt: skip
            matrix(f"blk.{i}.{leaf}.weight", rows, columns, kind)
        for leaf, size in (("attn_norm", D), ("ffn_norm", D), ("attn_q_norm", c.head_dim), ("attn_k_norm", c.head_dim)):
            ones(f"blk.{i}.{leaf}.weight", size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _token(i: int) -> str:
    """A distinct token per id: the 256 bytes first, as byte-level vocabularies write them, then the one merge."""
    from roclab.lm.tokenizer import _bytes_to_unicode

    letters = [*_bytes_to_unicode().values(), "ab"]
    return letters[i] if i < len(letters) else f"<{i}>"
