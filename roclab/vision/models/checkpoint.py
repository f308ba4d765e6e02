"""The whole trained model in one safetensors file, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from roclab.core.devices import pick_device
from roclab.core.exceptions import CheckpointError
from roclab.core.runs import Run
from roclab.core.training.checkpointing import load_tensors, save_tensors
from roclab.vision.data.transforms import Preprocessing
from roclab.vision.models.classifier import Classifier, build_model

BEFORE_REFIT = "head-before-refit.safetensors"  # the head that has not seen the validation images


def save_model(
    path: Path, model: Classifier, classes: list[str], image_size: int, state: Mapping[str, Tensor] | None = None
) -> None:
    """Save the whole model (`state` in place of its own weights if given) with what is needed to use it on an image."""
    about = {
        "model": model.name,
        "weights_id": model.weights_id,
        "classes": classes,
        "image_size": image_size,
        "recipe": asdict(model.preprocessing),  # the name that files have had from the first version
    }
    save_tensors(path, state or model.module.state_dict(), about)


def load_model(run: Run, split: str = "test") -> tuple[Classifier, list[str], int]:
    """The trained model of a run on the run's device, its class names and the image size (px) it works at.

    For the "val" images its head is the one before it was trained again on train + val.
    """
    path = run.checkpoints / "best.safetensors"
    state, about = load_tensors(path)
    if "classes" not in about:
        raise CheckpointError(f"{path} does not say what model it holds: it was not written by `roclab vision train`")
    model = build_model(about["model"], "none", len(about["classes"]), about["image_size"])
    try:
        model.module.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {about['model']}: {str(error).splitlines()[-1].strip()}") from None
    if split == "val" and (before := run.checkpoints / BEFORE_REFIT).exists():
        model.head.load_state_dict(load_tensors(before)[0])
    values = about["recipe"]
    model.preprocessing = Preprocessing(**values | {"mean": tuple(values["mean"]), "std": tuple(values["std"])})
    model.weights_id = about["weights_id"]
    return model.to(pick_device(run.config.get("device", "auto"))), about["classes"], about["image_size"]
