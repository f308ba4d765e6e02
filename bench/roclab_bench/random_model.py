"""A GGUF file with random weights of a known shape: speed and memory can be measured without the real weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from roclab.core.exceptions import RocLabError
from roclab.lm.model import RocLMConfig
from roclab.lm.weights.gguf_writer import add_tensor, finish, new_writer

SHAPES = {"qwen3-0.6b": RocLMConfig()}  # Qwen3-0.6B is the configuration's default
KINDS = {"int8": "Q8_0", "int4": "Q4_1"}


def write_random(path: Path, name: str, seed: int = 0) -> None:
    """Write the shape `name`, as "qwen3-0.6b:int8", to `path`. int4 has its embedding, which is the head as well, in
    Q8_0. Needs the `gguf` package. Raises RocLabError for a name that is none, and without that package."""
    shape, _, bits = name.partition(":")
    if shape not in SHAPES or bits not in KINDS:
        known = ", ".join(f"{s}:{b}" for s in SHAPES for b in KINDS)
        raise RocLabError(f"--random {name}: choose one of {known}")
    c, rng = SHAPES[shape], np.random.default_rng(seed)
    writer = new_writer(path, c)
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
        add_tensor(writer, c, f"{name}.weight", kind, blocks.reshape(rows, -1))

    def ones(name: str, size: int) -> None:
        add_tensor(writer, c, f"{name}.weight", "F32", np.ones(size, np.float32))

    kind, D, F = KINDS[bits], c.hidden_size, c.intermediate_size
    H, K = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    matrix("model.embed_tokens", c.vocab_size, D, "Q8_0")
    ones("model.norm", D)
    for i in range(c.num_hidden_layers):
        for part, rows, columns in (
            ("self_attn.q_proj", H, D), ("self_attn.k_proj", K, D), ("self_attn.v_proj", K, D),
            ("self_attn.o_proj", D, H), ("mlp.gate_proj", F, D), ("mlp.up_proj", F, D), ("mlp.down_proj", D, F),
        ):  # fmt: skip
            matrix(f"model.layers.{i}.{part}", rows, columns, kind)
        for part, size in (
            ("input_layernorm", D), ("post_attention_layernorm", D), ("self_attn.q_norm", c.head_dim),
            ("self_attn.k_norm", c.head_dim),
        ):  # fmt: skip
            ones(f"model.layers.{i}.{part}", size)
    finish(writer)


def _token(i: int) -> str:
    """A distinct token per id: the 256 bytes first, as byte-level vocabularies write them, then the one merge."""
    from roclab.lm.text.tokenizer import bytes_to_unicode

    letters = [*bytes_to_unicode().values(), "ab"]
    return letters[i] if i < len(letters) else f"<{i}>"
