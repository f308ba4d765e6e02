"""Model files in, RocLM out. Three layouts behind one small interface:

    Hugging Face directory   config.json, one or many safetensors, tokenizer.json
    GGUF                     one file with configuration, tokenizer and (quantized) tensors
    the course's             custom_model_state_dict.pth beside model_config.json

    checkpoint = open_checkpoint("smollm2-135m")   # reads configuration and names, no weights
    model = checkpoint.load_model()                # RocLMForCausalLM, every tensor checked against its shape
    tokenizer = checkpoint.load_tokenizer()

No pickle is ever executed.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from roclab.core.exceptions import CheckpointError
from roclab.core.progress import track
from roclab.lm.model import RocLMConfig, RocLMForCausalLM
from roclab.lm.text.tokenizer import Tokenizer, read_json_object
from roclab.lm.weights.gguf_file import GGUFFile
from roclab.lm.weights.gguf_names import SUPPORTED, config_of, names_in, row_order
from roclab.lm.weights.sources import locate

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def open_checkpoint(name: str | Path, say: Callable[[str], None] = lambda _: None) -> Checkpoint:
    """The checkpoint of that name (see `roclab.lm.weights.sources.locate`), its kind told by what is there.

    Raises CheckpointError if it is damaged, incomplete or of an unsupported architecture.
    """
    path = locate(str(name), say)
    if path.is_file():
        if path.suffix == ".pth":
            return CourseCheckpoint(path)
        if path.suffix == ".gguf" or _begins_as_gguf(path):  # some programs keep them under a hash, with no suffix
            return GGUFCheckpoint(path)
        raise CheckpointError(f"{path}: neither a GGUF nor a .pth file; of a model in several files name the folder")
    folder = path
    if (folder / CourseCheckpoint.WEIGHTS).exists():
        return CourseCheckpoint(folder / CourseCheckpoint.WEIGHTS)
    if (folder / "config.json").exists():
        return HuggingFaceCheckpoint(folder)
    gguf_files = sorted(folder.glob("*.gguf"))
    if len(gguf_files) == 1:
        return GGUFCheckpoint(gguf_files[0])
    if gguf_files:
        raise CheckpointError(
            f"{folder}: holds {len(gguf_files)} GGUF files; name one of them: {', '.join(f.name for f in gguf_files)}"
        )
    raise CheckpointError(
        f"{path}: no model here (looked for a .gguf file, config.json, or {CourseCheckpoint.WEIGHTS}); of a Hub "
        "repository that holds GGUF files name one, as owner/name/file.gguf"
    )


def _begins_as_gguf(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


class Checkpoint(ABC):
    """What every layout offers: `path`, `config`, `names()`, `shape(name)`, `tensor(name)`, `load_tokenizer()`.
    Tensor names are RocLM's parameter names."""

    path: Path
    config: RocLMConfig

    @abstractmethod
    def names(self) -> set[str]: ...

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]: ...

    @abstractmethod
    def tensor(self, name: str, dtype: torch.dtype) -> Tensor: ...

    def release(self, name: str) -> None:  # noqa: B027  (most layouts have nothing to do)
        """This tensor's bytes are not needed again soon: a mapped file may leave memory."""

    @abstractmethod
    def _tokenizer(self) -> Tokenizer: ...

    def load_model(self, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> RocLMForCausalLM:
        """The model with this checkpoint's weights, in eval mode. Raises CheckpointError that names a tensor which is
        missing, unknown or of the wrong shape (with both shapes)."""
        stored_names = self.checked()
        with _NoInitialValues(), torch.device("meta"):  # shapes without memory: the weights come from the file
            model = RocLMForCausalLM(self.config)
        for name, stored in track(stored_names.items(), "tensors"):
            module_name, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module_name), leaf, nn.Parameter(self.tensor(stored, dtype).to(device)))
        if self.config.tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        return model.to(device).eval()  # the buffers follow to the device

    def checked(self) -> dict[str, str]:
        """For each parameter of the model the name of its tensor here, after every tensor's shape was checked. Raises
        CheckpointError as `load_model` does."""
        layers = self.config.num_hidden_layers
        if (last := f"model.layers.{layers - 1}.input_layernorm.weight") not in self.names():
            # Looked at first: a damaged count could ask for a billion layers.
            raise CheckpointError(f"{self.path}: tensor {last} is missing (the configuration has {layers} layers)")
        query = "model.layers.0.self_attn.q_proj.weight"  # and a damaged head_dim for gigabytes of rotary frequencies
        rows = (self.config.num_attention_heads * self.config.head_dim, self.config.hidden_size)
        if query in self.names() and (found := self.shape(query)) != rows:
            raise CheckpointError(f"{self.path}: tensor {query} has shape {found}, the configuration needs {rows}")
        # All layers are alike: one is enough to know the shapes, and a model of one is built thirty times faster.
        with _NoInitialValues(), torch.device("meta"):
            one = RocLMForCausalLM(replace(self.config, num_hidden_layers=1, layer_types=None))
        wanted: dict[str, tuple[int, ...]] = {}
        # named_parameters lists shared parameters once: a tied head is the embedding and needs no tensor.
        for name, parameter in one.named_parameters():
            for layer in range(layers) if name.startswith(first := "model.layers.0.") else [None]:
                full = name if layer is None else f"model.layers.{layer}.{name.removeprefix(first)}"
                wanted[full] = tuple(parameter.shape)
        return self._stored_names(wanted)

    def _stored_names(self, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        """Parameter name → the name of its tensor here, after every tensor was checked."""
        present = self.names()
        stored = {name: name for name in wanted}
        if self.config.tie_word_embeddings and _EMBEDDING not in present and _HEAD in present:
            stored[_EMBEDDING] = _HEAD  # writers that store a shared tensor once keep either name
        if missing := sorted(name for name in wanted if stored[name] not in present):
            raise CheckpointError(
                f"{self.path}: tensor {missing[0]} of shape {wanted[missing[0]]} is missing{_and_more(missing)}"
            )
        ignored = {_HEAD} if self.config.tie_word_embeddings else set()
        if unknown := sorted(n for n in present - set(wanted) - ignored if not n.endswith("rotary_emb.inv_freq")):
            raise CheckpointError(
                f"{self.path}: tensor {unknown[0]} is not part of this architecture{_and_more(unknown)}"
            )
        for name, shape in wanted.items():
            if (found := self.shape(stored[name])) != shape:
                raise CheckpointError(f"{self.path}: tensor {name} has shape {found}, the configuration needs {shape}")
        return stored

    def load_tokenizer(self, folder: Path | None = None) -> Tokenizer:
        """The tokenizer, or another folder's. Raises CheckpointError if it has ids that the embedding lacks."""
        tokenizer = Tokenizer.from_directory(folder) if folder else self._tokenizer()
        if tokenizer.vocab_size > self.config.vocab_size:
            raise CheckpointError(
                f"{tokenizer.origin}: the vocabulary has {tokenizer.vocab_size} tokens, but the model's embedding has "
                f"{self.config.vocab_size} rows; tokenizer and weights are not of the same model"
            )
        return tokenizer


class _NoInitialValues(TorchFunctionMode):
    """Leaves new parameters as they are. On the meta device random values mean nothing, but drawing them makes torch
    import its whole symbolic machinery: more than a second and 150 MB."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


# ── Hugging Face directories ────────────────────────────────────────────────────────────────────────────────────


class HuggingFaceCheckpoint(Checkpoint):
    """A folder with config.json and safetensors."""

    def __init__(self, path: Path):
        self.path = path
        self.config = config_from_hugging_face(read_json_object(path / "config.json"), str(path / "config.json"))
        if (path / "generation_config.json").exists():  # often names more end tokens than config.json
            eos = read_json_object(path / "generation_config.json").get("eos_token_id")
            also = RocLMConfig(eos_token_id=eos).eos_token_ids
            self.config.eos_token_id = list(dict.fromkeys([*self.config.eos_token_ids, *also])) or None
        self._files = self._open_safetensors()

    def _open_safetensors(self) -> dict[str, Any]:
        """Tensor name → the open file that holds it."""
        from safetensors import SafetensorError, safe_open

        index = self.path / "model.safetensors.index.json"
        if index.exists():
            listed = read_json_object(index).get("weight_map")
            if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
                raise CheckpointError(f"{index}: weight_map, which tells the file of each tensor, is missing")
            files = sorted({self.path / file for file in listed.values()})
        elif (self.path / "model.safetensors").exists():  # others beside it are adapters or copies in another layout
            files = [self.path / "model.safetensors"]
        else:
            files = sorted(self.path.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{self.path}: no .safetensors file beside config.json")
        tensors = {}
        for file in files:
            try:
                opened = safe_open(file, framework="pt")
            except FileNotFoundError:
                raise CheckpointError(f"{file}: missing, although the model's files name it") from None
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file}: truncated or damaged ({error}); fetch the file again") from None
            tensors.update(dict.fromkeys(opened.keys(), opened))
        return tensors

    def names(self) -> set[str]:
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        return self._files[name].get_tensor(name).to(dtype)

    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_directory(self.path)


def config_from_hugging_face(values: Mapping[str, Any], origin: str) -> RocLMConfig:
    """config.json's content → RocLMConfig. Raises CheckpointError for an architecture or feature we do not have."""
    kind = values.get("model_type")
    if kind not in SUPPORTED:
        raise CheckpointError(f"{origin}: architecture {kind!r} is not supported (supported: {', '.join(SUPPORTED)})")
    # A Mistral configuration that does not mention the window has one of 4096; the others switch it on apart.
    window = values.get("sliding_window", 4096 if kind == "mistral" else None)
    if window is not None and (kind == "mistral" or values.get("use_sliding_window")):
        raise CheckpointError(f"{origin}: sliding-window attention (sliding_window={window}) is not supported")
    if values.get("mlp_bias"):
        raise CheckpointError(f"{origin}: biases in the MLP (mlp_bias) are not supported")
    if values.get("quantization_config"):
        raise CheckpointError(f"{origin}: quantized weights (quantization_config) are only read from GGUF files")
    try:
        rope = {**(values.get("rope_scaling") or {}), **(values.get("rope_parameters") or {})}  # the newer files' name
    except TypeError:
        raise CheckpointError(f"{origin}: rope_scaling and rope_parameters must be objects") from None
    theta = rope.pop("rope_theta", None) or values.get("rope_theta") or 10000.0
    share = rope.pop("partial_rotary_factor", None) or values.get("partial_rotary_factor") or 1.0
    if share != 1.0:
        raise CheckpointError(f"{origin}: rotary positions on a part of each head ({share}) are not supported")
    if rope.get("rope_type", rope.get("type", "default")) == "default":
        rope = {}
    optional = {
        key: values[key]
        for key in ("layer_types", "attention_dropout", "pad_token_id", "hidden_act", "max_position_embeddings")
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
            rope_scaling=rope or None,
            rms_norm_eps=values.get("rms_norm_eps", 1e-6),
            attention_bias=kind == "qwen2" or bool(values.get("attention_bias")),
            o_proj_bias=False if kind == "qwen2" else None,
            bos_token_id=values.get("bos_token_id"),
            eos_token_id=values.get("eos_token_id"),
            tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
            qk_norm=kind == "qwen3",
            **optional,
        )
    except KeyError as error:
        raise CheckpointError(f"{origin}: {error.args[0]} is missing") from None
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{origin}: {error}") from None
    return config


# ── GGUF ────────────────────────────────────────────────────────────────────────────────────────────────────────


class GGUFCheckpoint(Checkpoint):
    """A GGUF file. `file` gives the blocks as they are, for kernels that need no inflated weights."""

    def __init__(self, path: Path):
        self.path = path
        self.file = GGUFFile(path)
        self._gguf_name = names_in(self.file)
        try:
            self.config = config_of(self.file)
        except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
            raise CheckpointError(f"{path}: the metadata does not describe a model: {error}") from None

    def names(self) -> set[str]:
        return set(self._gguf_name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.file.tensors[self._gguf_name[name]].shape

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        tensor = self.file.load(self._gguf_name[name], dtype)
        order = self.row_order(name)
        return tensor if order is None else tensor[order]

    def blocks(self, name: str) -> tuple[str, np.ndarray]:
        """The tensor's block type and its blocks as they lie in the file, uint8 (blocks, bytes of a block); their rows
        are those of `tensor` only after `row_order`."""
        stored = self._gguf_name[name]
        return self.file.tensors[stored].type.name, self.file.raw(stored)

    def release(self, name: str) -> None:
        self.file.release(self._gguf_name[name])

    def row_order(self, name: str) -> Tensor | None:
        """Which row of the file's tensor is each of our rows; None if they are the same."""
        return row_order(self.config, self.file.metadata["general.architecture"], name)

    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_gguf(self.file.metadata, str(self.path))


# ── The course's layout ─────────────────────────────────────────────────────────────────────────────────────────


class CourseCheckpoint(Checkpoint):
    """custom_model_state_dict.pth with model_config.json beside it, and the tokenizer's files where they are given."""

    WEIGHTS, CONFIG = "custom_model_state_dict.pth", "model_config.json"

    def __init__(self, path: Path):
        self.path = path
        values = read_json_object(path.parent / self.CONFIG)
        if "model_type" in values:  # a config.json under the course's name
            self.config = config_from_hugging_face(values, str(path.parent / self.CONFIG))
        else:
            try:
                self.config = RocLMConfig.from_dict(values)
            except (ValueError, TypeError) as error:
                raise CheckpointError(f"{path.parent / self.CONFIG}: {error}") from None
        try:
            # weights_only: tensors and plain containers, nothing that runs. mmap: read when used, which only the zip
            # form allows; torch before 1.6 wrote another.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what is wrong is said below
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except FileNotFoundError:
            raise CheckpointError(f"{path}: missing, although {self.CONFIG} is there") from None
        except Exception as error:  # damaged zip, refused pickle, wrong magic: the library has a type for each
            reason = re.split(r"\.\s|\n", str(error).strip())[0] or type(error).__name__
            if isinstance(error, pickle.UnpicklingError):  # the library's own words tell how to run it after all
                found = re.search(r"GLOBAL (\S+)", str(error))
                reason = f"holds {found[1] if found else 'more than tensors'}, never run here; save model.state_dict()"
            raise CheckpointError(f"{path}: not a plain state dict, or damaged ({reason})") from None
        if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
            raise CheckpointError(f"{path}: not a state dict (a dict of tensors was expected)")
        self._state: dict[str, Tensor] = state

    def names(self) -> set[str]:
        return set(self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._state[name].shape)

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        return self._state[name].to(dtype, copy=True)

    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_directory(self.path.parent)
