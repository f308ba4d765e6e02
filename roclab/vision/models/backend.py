"""What computes a network's features: torch, or OpenVINO, which is faster for convolutional networks on a CPU.

A backend is a function of a network and of batches of RGB images (B, S, S, 3) uint8, all of one size; it yields each
batch's features (B, D) float32. It may read the next batch while it computes the last one.
"""

from __future__ import annotations

import importlib
import platform
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata, util
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from roclab.core.exceptions import RocLabError
from roclab.core.training.memory import release_freed_memory
from roclab.vision.data.transforms import normalised
from roclab.vision.models.classifier import Classifier

FEWEST = 200  # images: with fewer, converting the network takes longer than is won


def pick_backend(model: Classifier, images: int, asked: str = "auto") -> str:
    """ "torch", or "openvino" and its version: what computes the features of so many images.

    "auto" is OpenVINO where it is installed and was measured to be faster (docs/log-vision.md): networks with
    BatchNorm, whose normalisation and activation it computes within the convolutions, on an x86 CPU.
    """
    installed = util.find_spec("openvino") is not None
    if asked == "auto":
        convolutional = any(isinstance(layer, nn.BatchNorm2d) for layer in model.module.modules())
        x86 = model.device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")
        asked = "openvino" if installed and x86 and convolutional and images >= FEWEST else "torch"
    if asked == "torch":
        return asked
    if not installed:
        raise RocLabError("--backend openvino: it is not installed here: python -m pip install 'roclab[openvino]'")
    return f"openvino {metadata.version('openvino')}"


class OnPixels(nn.Module):
    """RGB images (B, H, W, 3) uint8 -> features (B, D)."""

    def __init__(self, model: Classifier):
        super().__init__()
        self.model = model
        self.module = model.module  # registered here, so that tracing knows its parameters

    def forward(self, images: Tensor) -> Tensor:
        return self.model.features(normalised(images.movedim(3, 1), self.model.preprocessing))


def torch_features(model: Classifier, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """On the network's own device, in channels_last layout."""
    network = OnPixels(model).eval()
    for images in batches:
        with torch.inference_mode():
            out = network(torch.from_numpy(images).to(model.device))
        yield out.float().cpu().numpy()
    release_freed_memory()


def openvino_features(model: Classifier, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """In float32. As many images at a time as torch has threads, each computed by one thread alone: no thread waits for
    another, and an image's features do not depend on the other images."""
    batches = iter(batches)
    if (first := next(batches, None)) is None:
        return
    threads, own = torch.get_num_threads(), threading.local()
    compiled = _compiled(model, first.shape[1:], threads)

    def start() -> None:
        own.request = compiled.create_infer_request()

    def infer(image: np.ndarray) -> np.ndarray:
        own.request.infer([image[None]])
        return own.request.get_output_tensor().data[0].copy()

    with ThreadPoolExecutor(threads, initializer=start) as pool:
        computing: Iterator[np.ndarray] | None = None
        for images in chain([first], batches):
            done, computing = computing, pool.map(infer, images)
            if done is not None:
                yield np.stack(list(done))
        yield np.stack(list(computing or ()))


def _compiled(model: Classifier, shape: tuple[int, ...], threads: int) -> Any:
    """OpenVINO's network for one image of a shape (H, W, 3)."""
    example = torch.zeros(1, *shape, dtype=torch.uint8, device=model.device)
    options = {
        "INFERENCE_PRECISION_HINT": "f32",  # on CPUs that have it, the default is bfloat16
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": threads,
        "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same cores
    }
    return openvino().Core().compile_model(convert(trace(OnPixels(model), example), example.shape), "CPU", options)


def openvino() -> Any:
    """The library, kept from reporting each import over the network, unasked."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None cannot be imported
    return importlib.import_module("openvino")


def trace(network: nn.Module, example: Tensor) -> Any:
    """The network's operations on the example, in evaluation mode."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # it is deprecated; what torch has instead takes three times as long here
        return torch.jit.trace(network.eval(), example, check_trace=False)


def convert(traced: Any, shape: Sequence[int]) -> Any:
    """OpenVINO's model of a traced network for an input of a shape, in which -1 is any length.

    It is what `openvino.convert_model` does, which would trace the network three times.
    """
    openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced)  # by name: only the name keeps it alive
    converted = frontend.convert(frontend.load(decoder))
    converted.reshape(list(shape))
    return converted


Backend = Callable[[Classifier, Iterable[np.ndarray]], Iterator[np.ndarray]]
BACKENDS: dict[str, Backend] = {"torch": torch_features, "openvino": openvino_features}


def compute_features(model: Classifier, batches: Iterable[np.ndarray], backend: str) -> Iterator[np.ndarray]:
    """The features of each batch, by a backend that `pick_backend` has named."""
    return BACKENDS[backend.split()[0]](model, batches)
