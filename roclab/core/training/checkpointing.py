"""Checkpoints: tensors with a JSON description in one safetensors file, and the state of a training in one.

A training that goes on from its state has the bits of one that was never interrupted. Generators are no part of the
state: random numbers come from seeds that are derived from the run's seed and the position (`derived_seed`), and the
position is in the description.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roclab.core.exceptions import CheckpointError
from roclab.core.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.swa_utils import AveragedModel


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: dict[str, Any]) -> None:
    """Atomic write of tensors, with a JSON description in the header."""
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    atomic_write(path, save(plain, metadata={"roclab": json.dumps(about)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file of `save_tensors`; raises `CheckpointError` if it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise CheckpointError(f"{path} is missing: training was stopped before it was written; go on with --resume")
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("roclab", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): train again, or restore the file") from None


def save_state(
    path: Path, module: nn.Module, ema: AveragedModel | None, optimizer: Optimizer, about: dict[str, Any]
) -> None:
    """Save everything that decides how training goes on; `about` holds the position."""
    tensors = {f"model.{name}": value for name, value in module.state_dict().items()}
    if ema:
        tensors |= {f"ema.{name}": value for name, value in ema.module.state_dict().items()}
    for index, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in entry.items()}
    save_tensors(path, tensors, about)


def restore_state(
    tensors: Mapping[str, Tensor], module: nn.Module, ema: AveragedModel | None, optimizer: Optimizer
) -> None:
    """Put the tensors of `save_state` back; raises `CheckpointError` if they do not fit the model."""
    import torch

    def part(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

    try:
        module.load_state_dict(part("model."))
        if ema:
            ema.module.load_state_dict(part("ema."))
    except RuntimeError as error:
        raise CheckpointError(f"last.safetensors does not fit this run's model: {str(error).splitlines()[0]}") from None
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    saved = optimizer.state_dict()
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in part("optimizer.").items():
        index, key = name.split(".", 1)
        # in the parameter's own memory layout (channels_last): the fused step walks both in storage order
        placed = value if value.ndim == 0 else torch.empty_like(parameters[int(index)]).copy_(value)
        entries.setdefault(int(index), {})[key] = placed
    saved["state"] = entries
    optimizer.load_state_dict(saved)
