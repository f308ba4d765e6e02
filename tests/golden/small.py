"""Small things to work on that are the same on every machine: photos, a language model, what a hand-in looks for."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import torch

from roclab.lm.model import RocLMConfig, RocLMForCausalLM

CLASSES = {"brick": (128, 126, 126), "grass": (126, 128, 126), "sky": (126, 126, 128)}
EACH, SIZE = 12, 48

SHAPE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": None,
}  # fmt: skip
# An original context of 32 puts wavelengths below, between and above the two limits.
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "qwen3-like": {"qk_norm": True, "tie_word_embeddings": True, "rope_theta": 1e6},
    "llama-like": {"qk_norm": False, "tie_word_embeddings": False, "rope_theta": 1e4, "rope_scaling": LLAMA3},
}


def numbers(name: str, shape: Any) -> torch.Tensor:
    """Numbers in [-1/2, 1/2), multiples of 2^-16, from a parameter's name: exact on every machine."""
    x = torch.arange(torch.Size(shape).numel(), dtype=torch.int64) + zlib.crc32(name.encode())
    x = (x * 1103515245 + 12345) & 0x7FFFFFFF
    x = ((x ^ (x >> 15)) * 1103515245 + 12345) & 0x7FFFFFFF
    return (((x >> 8) & 0xFFFF).float() / 65536 - 0.5).view(shape)


def roclm(kind: str, **changes: Any) -> RocLMForCausalLM:
    """A RocLM whose weights no random generator drew."""
    model = RocLMForCausalLM(RocLMConfig.from_dict(SHAPE | MODELS[kind] | changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = numbers(name, parameter.shape)
            # Powers of two keep the numbers exact. Norms lie around 1, as trained ones do.
            parameter.copy_(1 + drawn if parameter.ndim == 1 else drawn / 2)
    return model


def roclm_folder(folder: Path) -> Path:
    """A model folder small enough to be measured in a moment, with a token for each byte."""
    from safetensors.torch import save_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    changes = {
        "vocab_size": len(vocabulary), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "head_dim": 32, "num_attention_heads": 2, "max_position_embeddings": 1024,
    }  # fmt: skip
    model = roclm("qwen3-like", **changes)
    folder.mkdir()
    save_model(model, str(folder / "model.safetensors"))
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "eos_token_id": 0, "bos_token_id": 0}
    kept = ("num_key_value_heads", "rope_theta", "rms_norm_eps", "tie_word_embeddings", "hidden_act", "attention_bias")
    config |= changes | {name: getattr(model.config, name) for name in kept}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(vocabulary[:1])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": vocabulary[0]}), "utf-8")
    return folder


def draw_photos(folder: Path) -> Path:
    """A folder per class: strong noise around a colour of the class's own. No library draws or compresses them."""
    for name, colour in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for i in range(EACH):
            width, height = SIZE + i % 4, SIZE
            noise = hashlib.shake_256(f"{name} {i}".encode()).digest(3 * width * height)
            pixels = bytes(colour[at % 3] + (value - 128) * 3 // 5 for at, value in enumerate(noise))
            (folder / name / f"{i:02d}.png").write_bytes(png(width, height, pixels))
    return folder


def png(width: int, height: int, pixels: bytes) -> bytes:
    """An RGB picture. Its pixels are stored, not compressed: compressed bytes differ between versions of zlib."""
    row = 3 * width
    raw = b"".join(b"\0" + pixels[at : at + row] for at in range(0, len(pixels), row))
    assert len(raw) < 1 << 16  # one stored block
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(raw), len(raw) ^ 0xFFFF) + raw
    body = stored + struct.pack(">I", zlib.adler32(raw))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def checkpoint(header: dict[str, Any], path: Path) -> None:
    """A safetensors file with this header (metadata; dtype and shape of each tensor) and numbers by formula."""
    from safetensors.torch import save_file

    tensors = {}
    for name, (dtype, shape) in header["tensors"].items():
        if dtype == "I64":  # BatchNorm's count of batches
            tensors[name] = torch.zeros(shape, dtype=torch.int64)
        elif len(shape) == 1:  # gains, variances, means, biases
            tensors[name] = numbers(name, shape) + (1 if name.endswith(("weight", "running_var")) else 0)
        else:  # a variance of about 1/inputs, by a power of two that keeps the numbers exact
            inputs = torch.Size(shape[1:]).numel()
            tensors[name] = numbers(name, shape) * 4 / 2 ** round((inputs.bit_length() - 1) / 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path), header["metadata"])


def lab(folder: Path) -> Path:
    """What the hand-in looks at in the folder of `roclab tokenizer lab`."""
    folder.mkdir()
    output = {"output_type": "stream", "name": "stdout", "text": ["x\n"]}
    cell = {"cell_type": "code", "source": "print('x')", "execution_count": 1, "metadata": {}, "outputs": [output]}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "Tokenizer_Lab.ipynb").write_text(json.dumps(notebook), "utf-8")
    about = {"student_id": "31415", "tokenizers": {}, "sentences": [{"text": "The ID is five tokens."}]}
    (folder / "lab.json").write_text(json.dumps(about), "utf-8")
    return folder
