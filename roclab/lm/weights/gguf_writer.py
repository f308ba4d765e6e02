"""GGUF files out, as `gguf_reader`, llama.cpp and others read them. Needs the `gguf` package (`pip install
'roclab[gguf]'`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roclab.core.exceptions import RocLabError
from roclab.core.files import atomic_file
from roclab.core.progress import track
from roclab.lm.model import RocLMConfig, rope_frequencies
from roclab.lm.text.tokenizer import Tokenizer
from roclab.lm.weights.gguf_names import CONFIG_KEYS, ROPE_DIVISORS, gguf_name, llama3_scaling, row_order
from roclab.lm.weights.gguf_tokenizer import gguf_entries
from roclab.lm.weights.tensors import FLOAT_KINDS, StoredTensor, architecture_of, export_dtype, load_finite


def write_gguf(
    path: Path, config: RocLMConfig, tokenizer: Tokenizer, tensors: Iterable[tuple[str, str, np.ndarray]]
) -> None:
    """`tensors`: a parameter's name, its block type ("F32", "Q4_1", …) and its rows: float32 numbers, or the bytes of
    its blocks, uint8 (R, bytes of a row). Raises RocLabError as `check` does."""
    gguf, architecture = _package(), architecture_of(config)
    writer = gguf.GGUFWriter(path, architecture, use_temp_file=False)
    _add_config(writer, config)
    for key, value in gguf_entries(tokenizer, config).items():
        getattr(writer, f"add_{key}")(value)
    for name, kind, rows in tensors:
        if (order := row_order(config, architecture, name, len(rows))) is not None:
            rows = rows[torch.argsort(order).numpy()]  # row_order tells where our rows lie in the file
        raw = None if kind == "F32" else gguf.GGMLQuantizationType[kind]
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(rows), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf_floats(
    path: Path, config: RocLMConfig, tokenizer: Tokenizer, tensors: Mapping[str, StoredTensor], dtype: str = "auto"
) -> None:
    """Write a new GGUF file atomically, its matrices in `dtype` (see `export_dtype`), its vectors in float32. Raises
    RocLabError as `check` does, and for numbers that the dtype cannot hold."""
    chosen = export_dtype(tensors, dtype)
    kind = next(kind for kind, of in FLOAT_KINDS.items() if of == chosen)
    if path.exists():
        raise RocLabError(f"{path} is there already; name a new file")
    if path.suffix != ".gguf":
        raise RocLabError(f"{path}: the file is GGUF; give it a name that ends in .gguf")
    check(config, tokenizer)

    def rows() -> Iterator[tuple[str, str, np.ndarray]]:
        for name, tensor in track(tensors.items(), "tensors"):
            if len(tensor.shape) == 1 or kind == "F32":
                yield name, "F32", load_finite(name, tensor, torch.float32).numpy()
            else:
                yield name, kind, load_finite(name, tensor, chosen).view(torch.uint8).numpy()

    with atomic_file(path) as temporary:
        write_gguf(temporary, config, tokenizer, rows())


def check(config: RocLMConfig, tokenizer: Tokenizer) -> None:
    """Raises RocLabError without the `gguf` package, and for what GGUF cannot hold: other pre-tokenizers than those
    that are read, and other `rope_scaling` than linear, YaRN and Llama 3's, and sliding windows."""
    _package()
    if config.sliding_window:
        raise RocLabError("GGUF files of these architectures cannot hold a sliding window; export to a folder instead")
    _divisors(config)
    gguf_entries(tokenizer, config)


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise RocLabError("writing GGUF files needs the gguf package: pip install 'roclab[gguf]'") from None
    return gguf


def _add_config(writer: Any, config: RocLMConfig) -> None:
    gguf, divisors = _package(), _divisors(config)
    for key, field in CONFIG_KEYS.items():
        value = getattr(config, field)
        add = writer.add_float32 if field in ("rms_norm_eps", "rope_theta") else writer.add_uint32
        add(f"{writer.arch}.{key}", value)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if config.rope_scaling and config.rope_type in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(config.rope_type))
        writer.add_rope_scaling_factor(config.rope_scaling["factor"])
    if config.rope_scaling and config.rope_type == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(config.rope_scaling["original_max_position_embeddings"]))
    if divisors is not None:
        writer.add_tensor(ROPE_DIVISORS, divisors.numpy())


def _divisors(config: RocLMConfig) -> torch.Tensor | None:
    """What each angle is divided by in Llama 3's scaling, (C/2,), as GGUF stores it; None without it."""
    if config.rope_type != "llama3":
        return None
    divisors = rope_frequencies(replace(config, rope_scaling=None))[0] / rope_frequencies(config)[0]
    if llama3_scaling(config, divisors) is None:
        raise RocLabError("GGUF cannot hold this model's rope_scaling: its constants are not those of Llama 3")
    return divisors
