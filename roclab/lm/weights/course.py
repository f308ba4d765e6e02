"""The course's layout: custom_model_state_dict.pth with model_config.json beside it, and the tokenizer's files where
they are given, in the folder or in one beside it. No pickle is executed."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch

from roclab.core.exceptions import CheckpointError
from roclab.lm.model import RocLMConfig
from roclab.lm.text.tokenizer import Tokenizer, read_json_object
from roclab.lm.weights.huggingface import config_from_hugging_face
from roclab.lm.weights.tensors import Contents, tensor_in_memory

WEIGHTS, CONFIG = "custom_model_state_dict.pth", "model_config.json"


def read_course(path: Path) -> Contents:
    """`path` is the .pth file. Raises CheckpointError if it is damaged or holds anything but a state dict."""
    values = read_json_object(path.parent / CONFIG)
    if "model_type" in values:  # a config.json under the course's name
        config = config_from_hugging_face(values, str(path.parent / CONFIG))
    else:
        try:
            config = RocLMConfig.from_dict(values)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path.parent / CONFIG}: {error}") from None
    try:
        # weights_only: tensors and plain containers, nothing that runs. mmap: read when used, which only the zip form
        # allows; torch before 1.6 wrote another.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the messages below say what is wrong
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing, although {CONFIG} is there") from None
    except Exception as error:  # damaged zip, refused pickle, wrong magic: the library has a type for each
        reason = re.split(r"\.\s|\n", str(error).strip())[0] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # the library's own message tells how to run it after all
            found = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"holds {found[1] if found else 'more than tensors'}, never run here; save model.state_dict()"
        raise CheckpointError(f"{path}: not a plain state dict, or damaged ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: not a state dict (a dict of tensors was expected)")
    tensors = {name: tensor_in_memory(value) for name, value in state.items()}
    return Contents(config, dict(tensors), lambda: Tokenizer.from_directory(_tokenizer_folder(path.parent)))


def _tokenizer_folder(weights: Path) -> Path:
    """The folder of the weights, or the only one beside it that has a tokenizer where it has none itself."""
    beside = [file.parent for file in weights.resolve().parent.glob("*/tokenizer.json")]
    return weights if (weights / "tokenizer.json").exists() or len(beside) != 1 else beside[0]
