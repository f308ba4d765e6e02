"""A Hugging Face folder out, as transformers and vLLM open it: config.json, generation_config.json, safetensors,
tokenizer."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from roclab.core.exceptions import RocLabError
from roclab.core.files import atomic_file, atomic_folder, write_json
from roclab.core.progress import track
from roclab.lm.model import RocLMConfig
from roclab.lm.text.tokenizer import TOKENIZER_FILES, Tokenizer
from roclab.lm.weights.tensors import StoredTensor, architecture_of, export_dtype, load_finite

SHARD_BYTES = 5_000_000_000
# RocLMConfig's fields that config.json has under the same names.
CONFIG_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rope_theta", "rope_scaling", "rms_norm_eps",
    "hidden_act", "attention_bias", "attention_dropout", "tie_word_embeddings",
)  # fmt: skip


def write_huggingface(
    folder: Path,
    config: RocLMConfig,
    tokenizer: Tokenizer,
    tensors: Mapping[str, StoredTensor],
    dtype: str = "auto",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write atomically to `folder`, which must not exist or be empty. `dtype` as `export_dtype` takes it. Raises
    RocLabError for another folder, for a configuration that no supported architecture has, and for numbers that the
    dtype cannot hold."""
    chosen = export_dtype(tensors, dtype)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RocLabError(f"{folder} is there already and not an empty folder; name a new one")
    end_ids = list(dict.fromkeys([*config.eos_token_ids, *tokenizer.eos_token_ids]))
    special = {
        "bos_token_id": config.bos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        "eos_token_id": end_ids if len(end_ids) > 1 else end_ids[0] if end_ids else None,
        "pad_token_id": config.pad_token_id,
    }
    with atomic_folder(folder) as made:
        write_json(made / "config.json", transformers_config(config, chosen) | special)
        write_json(made / "generation_config.json", special)
        _write_tensors(made, tensors, chosen, shard_bytes)
        _write_tokenizer(made, tokenizer)


def transformers_config(config: RocLMConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers' config.json says of this shape. Raises RocLabError for one that no supported architecture
    has."""
    kind = architecture_of(config)
    o_bias = config.attention_bias if config.o_proj_bias is None else config.o_proj_bias
    if kind != "qwen2" and o_bias != config.attention_bias:
        raise RocLabError("no supported architecture has a bias on o_proj alone, or none on o_proj alone with QK-norm")
    windows: dict[str, Any] = {}
    if config.sliding_window:
        windows = {"sliding_window": config.sliding_window}
        if kind != "llama":
            kinds = config.layer_types or ["sliding_attention"] * config.num_hidden_layers
            windows |= {"use_sliding_window": True, "layer_types": kinds, "max_window_layers": 0}
        elif config.layer_types is None or set(config.layer_types) == {"sliding_attention"}:
            kind = "mistral"  # Llama with a window in every layer
        else:
            raise RocLabError("no supported architecture without QK-norm or biases has a window in some layers only")
    return {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "model_type": kind,
        **windows,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **{name: getattr(config, name) for name in CONFIG_FIELDS},
    }


def _write_tensors(folder: Path, tensors: Mapping[str, StoredTensor], dtype: torch.dtype, shard_bytes: int) -> None:
    """One file, or several with an index if they would be larger than `shard_bytes`."""
    from safetensors.torch import save_file

    sizes = {name: math.prod(tensor.shape) * dtype.itemsize for name, tensor in tensors.items()}
    shards: list[list[str]] = []
    filled = shard_bytes
    for name, size in sizes.items():
        if filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    several = len(shards) > 1
    files: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors" if several else "model.safetensors"
        loaded = {name: load_finite(name, tensors[name], dtype) for name in track(names, f"tensors of {file}")}
        with atomic_file(folder / file) as temporary:
            save_file(loaded, temporary, metadata={"format": "pt"})
        files |= dict.fromkeys(names, file)
    if several:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files}
        write_json(folder / "model.safetensors.index.json", index)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """The original files, where the tokenizer was read from such; else written anew."""
    if tokenizer.folder:
        for name in TOKENIZER_FILES:
            if (tokenizer.folder / name).exists():
                shutil.copyfile(tokenizer.folder / name, folder / name)
        return
    write_json(folder / "tokenizer.json", tokenizer.public_definition())
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # which takes tokenizer.json as it is
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "add_bos_token": tokenizer.adds_bos,
        "clean_up_tokenization_spaces": False,
        "chat_template": tokenizer.chat_template,
    }
    write_json(folder / "tokenizer_config.json", {key: value for key, value in settings.items() if value is not None})
