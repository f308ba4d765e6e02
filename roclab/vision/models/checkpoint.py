"""The whole trained model in one safetensors file, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roclab.core.exceptions import CheckpointError
from roclab.core.files import atomic_write
from roclab.core.runs import Run

if TYPE_CHECKING:
    import torch

    from roclab.vision.models.classifier import Classifier


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Write tensors with a JSON description in the header, whole or not at all."""
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    atomic_write(path, save(plain, metadata={"roclab": json.dumps(about)}))


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and description of a file of `save_tensors`; raises `CheckpointError` if it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise CheckpointError(f"{path} is missing: the training was cut before it was written; go on with --resume")
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("roclab", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): train again, or restore the file") from None


def save_model(
    path: Path, model: Classifier, classes: list[str], image_size: int, state: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Save the whole model (`state` in place of its own weights if given) with what is needed to use it on a image."""
    about = {
        "model": model.name,
        "weights_id": model.weights_id,
        "classes": classes,
        "image_size": image_size,
        "recipe": asdict(model.recipe),
    }
    save_tensors(path, state or model.module.state_dict(), about)


def load_model(run: Run, which: str = "best") -> tuple[Classifier, list[str], int]:
    """The trained model of a run, its class names and the image size (px) it works at."""
    from roclab.vision.data.transforms import Recipe
    from roclab.vision.models.classifier import build_model

    path = run.checkpoints / f"{which}.safetensors"
    state, about = load_tensors(path)
    if "classes" not in about:
        raise CheckpointError(f"{path} does not say what model it holds: it was not written by `roclab vision train`")
    model = build_model(about["model"], "none", len(about["classes"]), about["image_size"])
    try:
        model.module.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {about['model']}: {str(error).splitlines()[-1].strip()}") from None
    recipe = about["recipe"]
    model.recipe = Recipe(**recipe | {"mean": tuple(recipe["mean"]), "std": tuple(recipe["std"])})
    model.weights_id = about["weights_id"]
    model.module.eval()
    return model, about["classes"], about["image_size"]
