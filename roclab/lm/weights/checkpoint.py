"""A model by name, whatever its files: configuration, tensors that fit it, tokenizer.

    checkpoint = open_checkpoint("smollm2-135m")             # reads the configuration, no weights
    checkpoint.tensors["model.norm.weight"].load()           # one parameter, checked against the configuration
    model = checkpoint.load_model()                          # RocLMForCausalLM
    tokenizer = checkpoint.load_tokenizer()

The formats, each in a module of its own: Hugging Face folders, GGUF files, the course's layout, and a model in memory.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from roclab.core.exceptions import CheckpointError
from roclab.core.progress import track
from roclab.lm.model import RocLMConfig, RocLMForCausalLM
from roclab.lm.text.tokenizer import Tokenizer
from roclab.lm.weights import course
from roclab.lm.weights.gguf_reader import model_files, read_gguf
from roclab.lm.weights.huggingface import read_huggingface
from roclab.lm.weights.sources import locate
from roclab.lm.weights.tensors import Contents, StoredTensor, tensor_in_memory

logger = logging.getLogger(__name__)

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Checkpoint:
    """A model's `config`, `tensors` and tokenizer. `path` is its file or folder."""

    def __init__(self, path: Path, contents: Contents):
        self.path, self.config = path, contents.config
        self._stored, self._tokenizer = contents.tensors, contents.tokenizer
        both = [self._stored.get(name) for name in (_EMBEDDING, _HEAD)]
        if self.config.tie_word_embeddings and both[0] and both[1] and not np.array_equal(both[0].raw, both[1].raw):
            logger.warning("%s: tie_word_embeddings is true, but there is another %s: it is used", path, _HEAD)
            self.config = replace(self.config, tie_word_embeddings=False)

    @classmethod
    def of(cls, model: RocLMForCausalLM, tokenizer: Tokenizer) -> Checkpoint:
        """Of a model in memory, such as one that was just trained: for the CPU kernels, quantizing, export."""
        tensors: dict[str, StoredTensor] = {n: tensor_in_memory(p) for n, p in model.named_parameters()}
        return cls(Path("<memory>"), Contents(model.config, tensors, lambda: tokenizer))

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """For each parameter of the model its tensor here; a tied head has none of its own. Raises CheckpointError that
        names a tensor which is missing, unknown or of the wrong shape (with both shapes)."""
        stored, wanted = self._stored, self._parameter_shapes()
        if self.config.tie_word_embeddings and _HEAD in stored:  # writers that store a shared tensor once keep either
            stored = {_EMBEDDING: stored[_HEAD], **{name: t for name, t in stored.items() if name != _HEAD}}
        if missing := sorted(set(wanted) - set(stored)):
            raise CheckpointError(
                f"{self.path}: tensor {missing[0]} of shape {wanted[missing[0]]} is missing{_and_more(missing)}"
            )
        if unknown := sorted(n for n in set(stored) - set(wanted) if not n.endswith("rotary_emb.inv_freq")):
            raise CheckpointError(
                f"{self.path}: tensor {unknown[0]} is not part of this architecture{_and_more(unknown)}"
            )
        for name, shape in wanted.items():
            self._check_shape(name, stored[name].shape, shape)
        return {name: stored[name] for name in wanted}

    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        layers = self.config.num_hidden_layers
        if (last := f"model.layers.{layers - 1}.input_layernorm.weight") not in self._stored:
            # Looked at first: a damaged count could ask for a billion layers.
            raise CheckpointError(f"{self.path}: tensor {last} is missing (the configuration has {layers} layers)")
        query = "model.layers.0.self_attn.q_proj.weight"  # and a damaged head_dim for gigabytes of rotary frequencies
        if query in self._stored:
            rows = self.config.num_attention_heads * self.config.head_dim
            self._check_shape(query, self._stored[query].shape, (rows, self.config.hidden_size))
        # All layers are alike: one is enough to know the shapes, and a model of one is built thirty times faster.
        one = empty_model(replace(self.config, num_hidden_layers=1, layer_types=None))
        shapes: dict[str, tuple[int, ...]] = {}
        # named_parameters lists shared parameters once: a tied head is the embedding and needs no tensor.
        for name, parameter in one.named_parameters():
            _, of_a_layer, rest = name.partition("model.layers.0.")
            names = [f"model.layers.{i}.{rest}" for i in range(layers)] if of_a_layer else [name]
            shapes |= dict.fromkeys(names, tuple(parameter.shape))
        return shapes

    def _check_shape(self, name: str, found: tuple[int, ...], needed: tuple[int, ...]) -> None:
        if found != needed:
            raise CheckpointError(f"{self.path}: tensor {name} has shape {found}, the configuration needs {needed}")

    def load_model(self, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> RocLMForCausalLM:
        """The readable model with these weights, in eval mode. Raises CheckpointError as `tensors` does."""
        tensors, model = self.tensors, empty_model(self.config)
        for name, tensor in track(tensors.items(), "tensors"):
            module_name, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module_name), leaf, nn.Parameter(tensor.load(dtype).to(device)))
        if self.config.tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        return model.to(device).eval()  # the buffers follow to the device

    def load_tokenizer(self, folder: Path | None = None) -> Tokenizer:
        """The tokenizer, or another folder's. Raises CheckpointError if it has ids that the embedding lacks."""
        tokenizer = Tokenizer.from_directory(folder) if folder else self._tokenizer()
        for i in self.config.eos_token_ids:
            if not 0 <= i < self.config.vocab_size:
                logger.warning("%s: the end token is id %d, beyond the vocabulary: it ends no text", self.path, i)
        if tokenizer.vocab_size > self.config.vocab_size:
            raise CheckpointError(
                f"{tokenizer.origin}: the vocabulary has {tokenizer.vocab_size} tokens, but the model's embedding has "
                f"{self.config.vocab_size} rows; tokenizer and weights are not of the same model"
            )
        return tokenizer


def open_checkpoint(name: str | Path) -> Checkpoint:
    """The checkpoint of that name (see `roclab.lm.weights.sources.locate`), its format told by what is there.

    Raises CheckpointError if it is damaged, incomplete or of an unsupported architecture.
    """
    path = locate(str(name))
    if path.is_file():
        if path.suffix == ".pth":
            return Checkpoint(path, course.read_course(path))
        if path.suffix == ".gguf" or _begins_as_gguf(path):  # some programs keep them under a hash, with no suffix
            return Checkpoint(path, read_gguf(path))
        raise CheckpointError(f"{path}: neither a GGUF nor a .pth file; of a model in several files name the folder")
    if (path / course.WEIGHTS).exists():
        return Checkpoint(path / course.WEIGHTS, course.read_course(path / course.WEIGHTS))
    if (path / "config.json").exists():
        return Checkpoint(path, read_huggingface(path))
    gguf_files = model_files(path)
    if len(gguf_files) == 1:
        return Checkpoint(gguf_files[0], read_gguf(gguf_files[0]))
    if gguf_files:
        raise CheckpointError(
            f"{path}: holds {len(gguf_files)} GGUF files; name one of them: {', '.join(f.name for f in gguf_files)}"
        )
    raise CheckpointError(
        f"{path}: no model here (looked for a .gguf file, config.json, or {course.WEIGHTS}); of a Hub repository that "
        "holds GGUF files name one, as owner/name/file.gguf"
    )


def _begins_as_gguf(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def empty_model(config: RocLMConfig) -> RocLMForCausalLM:
    """A model whose parameters have shapes but no memory."""
    with _NoInitialValues(), torch.device("meta"):
        return RocLMForCausalLM(config)


class _NoInitialValues(TorchFunctionMode):
    """Leaves new parameters as they are. On the meta device random values mean nothing, but drawing them makes torch
    import its whole symbolic machinery: more than a second and 150 MB."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
