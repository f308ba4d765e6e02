"""A GGUF file with random weights of a known shape: speed and memory can be measured without the real weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from roclab.core.exceptions import RocLabError
from roclab.lm.model import RocLMConfig
from roclab.lm.text.tokenizer import bytes_to_unicode
from roclab.lm.weights.checkpoint import empty_model
from roclab.lm.weights.gguf_tokenizer import tokenizer_from_gguf
from roclab.lm.weights.gguf_writer import write_gguf

SHAPES = {"qwen3-0.6b": RocLMConfig()}  # Qwen3-0.6B is the configuration's default
KINDS = {"int8": "Q8_0", "int4": "Q4_1"}


def write_random(path: Path, name: str, seed: int = 0) -> None:
    """Write the shape `name`, as "qwen3-0.6b:int8", to `path`. int4 has its embedding, which is the head as well, in
    Q8_0. Needs the `gguf` package. Raises RocLabError for an unknown name, and without that package."""
    shape, _, bits = name.partition(":")
    if shape not in SHAPES or bits not in KINDS:
        known = ", ".join(f"{s}:{b}" for s in SHAPES for b in KINDS)
        raise RocLabError(f"--random {name}: choose one of {known}")
    config = SHAPES[shape]
    # A distinct token per id: the 256 bytes first, as byte-level vocabularies write them, then one merge.
    tokens = [*bytes_to_unicode().values(), "ab"]
    tokens += [f"<{i}>" for i in range(len(tokens), config.vocab_size)]
    entries = {"model": "gpt2", "pre": "qwen2", "tokens": tokens, "merges": ["a b"]}
    tokenizer = tokenizer_from_gguf({f"tokenizer.ggml.{key}": value for key, value in entries.items()}, name)
    write_gguf(path, config, tokenizer, _tensors(config, KINDS[bits], seed))


def _tensors(config: RocLMConfig, kind: str, seed: int) -> Iterator[tuple[str, str, np.ndarray]]:
    """Random quants; scales that give weights of about 0.02."""
    rng = np.random.default_rng(seed)
    for name, parameter in empty_model(config).named_parameters():
        shape = parameter.shape
        if len(shape) == 1:
            yield name, "F32", np.ones(tuple(shape), np.float32)
            continue
        used = "Q8_0" if "embed_tokens" in name else kind
        scale = np.float16(0.02 / (73 if used == "Q8_0" else 4.6))
        ends = [scale] if used == "Q8_0" else [scale, np.float16(-7.5 * float(scale))]
        head = np.frombuffer(np.array(ends, np.float16).tobytes(), np.uint8)
        size = len(head) + (32 if used == "Q8_0" else 16)
        blocks = rng.integers(0, 256, (shape[0] * shape[1] // 32, size), dtype=np.uint8)
        blocks[:, : len(head)] = head
        yield name, used, blocks.reshape(shape[0], -1)
