"""A model from a Hugging Face folder: config.json, one or many safetensors, tokenizer.json."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from roclab.core.exceptions import CheckpointError
from roclab.core.files import not_downloaded
from roclab.lm.model import RocLMConfig
from roclab.lm.text.tokenizer import Tokenizer, read_json_object
from roclab.lm.weights.tensors import Contents, FloatTensor, StoredTensor, checked_architecture, checked_rope_scaling

logger = logging.getLogger(__name__)

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # Qwen's, Mixtral's, DeepSeek's names


def read_huggingface(folder: Path) -> Contents:
    """Raises CheckpointError for a damaged or missing file, an architecture or feature that is not supported."""
    config = config_from_hugging_face(read_json_object(folder / "config.json"), str(folder / "config.json"))
    if (folder / "generation_config.json").exists():  # often names more end tokens than config.json
        eos = read_json_object(folder / "generation_config.json").get("eos_token_id")
        try:
            also = RocLMConfig(eos_token_id=eos).eos_token_ids
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{folder / 'generation_config.json'}: {error}") from None
        config.eos_token_id = list(dict.fromkeys([*config.eos_token_ids, *also])) or None
    return Contents(config, _tensors(folder), lambda: Tokenizer.from_directory(folder))


def _tensors(folder: Path) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, StoredTensor] = {}
    for path, listed in _weight_files(folder).items():
        try:
            file = safe_open(path, framework="pt")
            held = set(file.keys())
        except FileNotFoundError:
            why = "although the index names it" if listed else "its link leads nowhere; fetch the file again"
            raise CheckpointError(f"{path}: missing, {_interrupted(folder) or why}") from None
        except (SafetensorError, OSError) as error:
            damaged = f"truncated or damaged ({error}); fetch the file again"
            raise CheckpointError(f"{path}: {not_downloaded(path) or damaged}") from None
        if absent := sorted(set(listed or ()) - held):
            raise CheckpointError(f"{path}: tensor {absent[0]} is missing, which the index says is here")
        for name in listed or sorted(held):
            stored = file.get_slice(name)
            tensors[name] = FloatTensor(tuple(stored.get_shape()), stored.get_dtype(), partial(_read, file, path, name))
    return tensors


def _read(file: Any, path: Path, name: str, dtype: torch.dtype) -> torch.Tensor:
    tensor = file.get_tensor(name)
    if not tensor.is_floating_point():
        whole = f"tensor {name} holds whole numbers ({str(tensor.dtype).removeprefix('torch.')})"
        raise CheckpointError(f"{path}: {whole}; quantized weights are only read from GGUF files")
    return tensor.to(dtype)


def _weight_files(folder: Path) -> dict[Path, list[str] | None]:
    """The files, and the tensors to take from each; None: all."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        listed = read_json_object(index).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
            raise CheckpointError(f"{index}: weight_map, which tells the file of each tensor, is missing")
        files: dict[Path, list[str] | None] = {}
        for name, file in listed.items():
            files[folder / file] = [*(files.get(folder / file) or []), name]
        if whole not in files and whole.exists() and not any(file.exists() for file in files):
            logger.warning("%s: names files that are not here; %s is taken instead", index, whole.name)
            return {whole: None}
        return files
    if whole.exists():  # others beside it are adapters or copies in another layout
        return {whole: None}
    if found := sorted(folder.glob("*.safetensors")):
        return dict.fromkeys(found)
    raise CheckpointError(f"{folder}: no .safetensors file beside config.json{_interrupted(folder)}")


def _interrupted(folder: Path) -> str:
    """What to say of files that a download left unfinished; nothing if there are none."""
    begun = [file for end in ("incomplete", "part", "crdownload") for file in sorted(folder.glob(f"**/*.{end}"))]
    return f" because its download was interrupted ({begun[0].name}); fetch the model again" if begun else ""


def _windows(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """`sliding_window` and `layer_types`. A Mistral configuration that does not mention the window has one of 4096; the
    others switch it on apart, for the layers from `max_window_layers` on where they do not list the kinds."""
    window = values.get("sliding_window", 4096 if kind == "mistral" else None)
    if not window or (kind != "mistral" and not values.get("use_sliding_window")):
        return {"layer_types": values.get("layer_types")}
    kinds, layers = values.get("layer_types"), values["num_hidden_layers"]
    if kinds is None and kind != "mistral" and layers < 1000:  # a damaged count is reported elsewhere
        full = values.get("max_window_layers", layers)
        kinds = ["full_attention" if layer < full else "sliding_attention" for layer in range(layers)]
    return {"layer_types": kinds, "sliding_window": window}


def config_from_hugging_face(values: Mapping[str, Any], origin: str) -> RocLMConfig:
    """config.json's content → RocLMConfig. Raises CheckpointError for an architecture or feature we do not have."""
    kind = checked_architecture(values.get("model_type"), any(map(values.get, _EXPERTS)), origin)
    if values.get("mlp_bias"):
        raise CheckpointError(f"{origin}: biases in the MLP (mlp_bias) are not supported")
    if values.get("quantization_config"):
        raise CheckpointError(f"{origin}: quantized weights (quantization_config) are only read from GGUF files")
    try:
        rope = {**(values.get("rope_scaling") or {}), **(values.get("rope_parameters") or {})}  # the newer files' name
    except TypeError:
        raise CheckpointError(f"{origin}: rope_scaling and rope_parameters must be objects") from None
    theta = next(v for v in (rope.pop("rope_theta", None), values.get("rope_theta"), 10000.0) if v is not None)
    share = rope.pop("partial_rotary_factor", None) or values.get("partial_rotary_factor") or 1.0
    if share != 1.0:
        raise CheckpointError(f"{origin}: rotary positions on a part of each head ({share}) are not supported")
    optional = {
        key: values[key]
        for key in ("attention_dropout", "pad_token_id", "hidden_act", "max_position_embeddings")
        if values.get(key) is not None
    }
    try:
        config = RocLMConfig(
            vocab_size=values["vocab_size"],
            hidden_size=values["hidden_size"],
            intermediate_size=values["intermediate_size"],
            num_hidden_layers=values["num_hidden_layers"],
            num_attention_heads=values["num_attention_heads"],
            num_key_value_heads=values.get("num_key_value_heads") or values["num_attention_heads"],
            head_dim=values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"],
            rope_theta=theta,
            rope_scaling=checked_rope_scaling(rope, optional.get("max_position_embeddings"), origin),
            rms_norm_eps=values.get("rms_norm_eps", 1e-6),
            attention_bias=kind == "qwen2" or bool(values.get("attention_bias")),
            o_proj_bias=False if kind == "qwen2" else None,
            bos_token_id=values.get("bos_token_id"),
            eos_token_id=values.get("eos_token_id"),
            tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
            qk_norm=kind == "qwen3",
            **_windows(kind, values),
            **optional,
        )
    except KeyError as error:
        raise CheckpointError(f"{origin}: {error.args[0]} is missing") from None
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{origin}: {error}") from None
    return config
