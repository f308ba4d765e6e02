"""A trained network as one file that needs no RocLab: a decoded image goes in, class probabilities come out.

    image (1, H, W, 3) uint8 RGB, any size  ->  resize, centre crop, normalisation, network, softmax  ->  (1, C) float32

Resize and crop are two products with matrices computed from the image's size: Pillow's filters, weights in fixed point
and rounding between the passes included, in float64 bit for bit what Pillow computes. (OpenVINO computes them in
float32: a pixel in ten thousand is one step off.) The formats' own resize operators differ from Pillow's.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from roclab.core.exceptions import CheckpointError
from roclab.core.progress import track
from roclab.vision.data.images import open_image
from roclab.vision.data.transforms import Preprocessing, normalised
from roclab.vision.models.backend import convert, openvino, trace
from roclab.vision.models.classifier import Classifier

FILES = {"onnx": "model.onnx", "torchscript": "model.pt", "openvino": "model.xml"}


class OnImage(nn.Module):
    """One image (1, H, W, 3) uint8 -> class probabilities (1, C)."""

    def __init__(self, model: Classifier, image_size: int):
        super().__init__()
        self.module, self.preprocessing, self.size = model.module, model.preprocessing, image_size

    def forward(self, image: Tensor) -> Tensor:
        pixels = image.permute(0, 3, 1, 2)  # (1, 3, H, W)
        shape = torch._shape_as_tensor(image)
        height, width = shape[1:2], shape[2:3]  # of one element: numbers alone the ONNX exporter computes in float32
        shorter = torch.minimum(height, width)
        down, across = (resampling(side, shorter, self.preprocessing, self.size) for side in (height, width))
        crop = resampled(pixels, down, across)  # (1, 3, S, S)
        return self.module(normalised(crop, self.preprocessing)).softmax(1)


def resampled(pixels: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """(…, H, W) resized by two matrices (S, H) and (S, W) to (…, S, S), integers in [0, 255]."""
    rows = (pixels.double() @ across.T + 0.5).floor().clamp(0, 255)  # Pillow rounds after each pass, across first
    return (down @ rows + 0.5).floor().clamp(0, 255)


def resampling(length: Tensor, shorter: Tensor, preprocessing: Preprocessing, size: int) -> Tensor:
    """The matrix (S, L), float64, that brings one side of an image to its length at the resize and cuts out its middle.

    `length` and `shorter` have one element. Pillow's filters (Resample.c): a triangle of radius 1 or Keys' cubic
    (a = -0.5) of radius 2, as many times wider as the side gets shorter, weights scaled to a sum of one and rounded to
    22 bits. Lengths and offsets are torchvision's.
    """
    resized = preprocessing.resize_for(size) * length // shorter
    offset = ((resized - size).double() / 2).round()
    scale = length.double() / resized.double()
    centre = (torch.arange(size).double() + offset + 0.5) * scale  # (S,) in source pixels
    source = torch.arange(length.squeeze(0)).double() + 0.5  # type: ignore[call-overload]  # (L,)
    x = (source - centre[:, None]).abs() / scale.clamp(min=1)  # (S, L)
    if preprocessing.interpolation == "bilinear":
        weight = (1 - x).clamp(min=0)
    else:
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weight = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return (weight / weight.sum(1, keepdim=True) * 2**22).round() / 2**22


def write_exported(model: Classifier, classes: Sequence[str], image_size: int, kind: str, path: Path) -> None:
    """Write the network in a format of `FILES`, with what `Exported` knows as its metadata."""
    about = {"classes": json.dumps(list(classes)), "resize": str(model.preprocessing.resize_for(image_size))}
    example = torch.zeros(1, 300, 400, 3, dtype=torch.uint8)
    traced = trace(OnImage(model, image_size), example)
    if kind == "onnx":
        import onnx

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # this exporter is deprecated; the new one needs a package more
            axes = {"image": {1: "height", 2: "width"}}
            named: dict[str, Any] = {"input_names": ["image"], "output_names": ["probabilities"]}
            torch.onnx.export(traced, (example,), path, dynamo=False, opset_version=17, dynamic_axes=axes, **named)
        written = onnx.load(path)
        onnx.helper.set_model_props(written, about)
        onnx.save(written, path)
    elif kind == "torchscript":
        traced.save(str(path), _extra_files=about)
    else:
        converted = convert(traced, (1, -1, -1, 3))
        for name, value in about.items():
            converted.set_rt_info(value, [name])
        openvino().save_model(converted, path, compress_to_fp16=False)


@dataclass
class Exported:
    """An exported model, open."""

    classes: list[str]
    resize: int  # px of the image's shorter side inside the model
    compute: Callable[[np.ndarray], np.ndarray]  # one image (1, H, W, 3) uint8 -> probabilities (1, C)

    def probs(self, paths: Sequence[Path]) -> np.ndarray:
        """Class probabilities (N, C) of images, read as the run that was exported reads them."""
        images = (np.array(open_image(path, at_least=self.resize)) for path in track(paths, "images"))
        return np.concatenate([self.compute(image[None]) for image in images])


def exported_file(path: Path) -> Path | None:
    """The model in a folder of `roclab vision export` (the only ONNX file, if it was renamed), or the file itself; None
    for any other folder."""
    if path.is_file():
        return path
    renamed = [] if (path / "config.json").exists() else [*path.glob("*.onnx")]
    named = filter(Path.is_file, (path / name for name in FILES.values()))
    return next(named, renamed[0] if len(renamed) == 1 else None)


def open_exported(path: Path, just_written: bool = False) -> Exported:
    """Opens a file that `write_exported` wrote. Raises `CheckpointError` for any other.

    A TorchScript file is a program, which may write any file of the user's: it is run only if this process wrote it.
    """
    kind = path.suffix.lower()
    if kind == ".pt" and not just_written:
        raise CheckpointError(f"{path} is TorchScript, a program, and programs in files are not run: export --to onnx")
    if kind not in OPENERS:
        raise CheckpointError(f"{path} is no model that can be opened: name the model.onnx or model.xml of an export")
    try:
        compute, about = OPENERS[kind](path)
        classes, resize = json.loads(about("classes")), int(about("resize"))
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError("its classes are not a list of names")
        tried = compute(np.zeros((1, 64, 64, 3), np.uint8))
        if tried.shape != (1, len(classes)) or not abs(tried.sum() - 1) < 1e-3:  # nor for NaN
            raise ValueError(f"it gives no probabilities of its {len(classes)} classes")
    except ModuleNotFoundError:  # the command line says which extra brings it
        raise
    except Exception as error:  # each of the three has kinds of its own; OpenVINO's begin with places in its source
        lines = [line for line in str(error).splitlines() if line and not line.startswith(("Exception", "Check '"))]
        reason = lines[0] if lines else type(error).__name__
        raise CheckpointError(f"{path} is not a model of `roclab vision export`, or damaged ({reason})") from None
    return Exported(classes, resize, compute)


Opened = tuple[Callable[[np.ndarray], np.ndarray], Callable[[str], str]]  # computes, and gives metadata by name


def _onnx(path: Path) -> Opened:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    return lambda image: session.run(None, {"image": image})[0], about.__getitem__


def _torchscript(path: Path) -> Opened:
    about: dict[str, Any] = {"classes": "", "resize": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, as all of TorchScript
        module = torch.jit.load(str(path), "cpu", _extra_files=about)

    def compute(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # it would be optimised for each size anew
            return module(torch.from_numpy(image)).numpy()

    return compute, about.__getitem__


def _openvino(path: Path) -> Opened:
    core = openvino().Core()
    network = core.read_model(path)
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: compiled([image])[0].copy(), lambda name: network.get_rt_info([name]).astype(str)


OPENERS: dict[str, Callable[[Path], Opened]] = {".onnx": _onnx, ".pt": _torchscript, ".xml": _openvino}
