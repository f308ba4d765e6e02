"""`roclab vision export`: a run's network as a file that needs no RocLab, compared with the run before it is handed
over, and a model card beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from roclab import __version__
from roclab.core.exceptions import RocLabError
from roclab.core.files import atomic_folder, atomic_write
from roclab.core.runs import Run
from roclab.core.sentences import escape
from roclab.vision.evaluate.run_reader import VisionRun
from roclab.vision.models.classifier import BEFORE_REFIT, LITE0, load_model
from roclab.vision.models.exported import FILES, open_exported, write_exported
from roclab.vision.models.inference import predict_probs

COMPARED = 20  # images
ALLOWED = {"onnx": 1e-3, "torchscript": 1e-3, "openvino": 1e-2}  # between probabilities; the last resizes in float32

TORCHVISION = "torchvision is BSD-3-Clause and names no other one for its weights; ImageNet is for research"
LICENCES = {LITE0: "Apache-2.0 (Google's EfficientNet-Lite)", "resnet50": TORCHVISION, "swin_t": TORCHVISION}  # default

ONNX_ALONE = """With ONNX Runtime, Pillow and numpy alone:

```python
import json, numpy, onnxruntime, PIL.Image, PIL.ImageOps

session = onnxruntime.InferenceSession("model.onnx")
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
image = PIL.ImageOps.exif_transpose(PIL.Image.open("image.jpg")).convert("RGB")
probabilities = session.run(None, {"image": numpy.asarray(image)[None]})[0][0]
```

RocLab also lays transparent images on white and scales 16-bit ones to 8 bits, which `convert` does not.

"""


def export(run: Run, kind: str, out: Path, data_root: str | None = None) -> dict[str, Any]:
    """Write a finished run's network and its model card into the folder `out`, which must not exist or be empty.

    Returns what was compared: the number of validation images and the largest difference between probabilities of the
    run and of the file. Raises `RocLabError`, and leaves nothing, if that is more than `ALLOWED`.
    """
    if kind not in FILES:
        raise RocLabError(f"--to {kind}: choose one of {', '.join(FILES)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RocLabError(f"{out} is there already: choose another --out")
    run = VisionRun.open(run.path)
    _ = run.training  # raises if the run is not finished
    val = run.dataset(data_root).split("val")
    paths = [image.path for image in val[:: max(1, len(val) // COMPARED)][:COMPARED]]
    model, classes, image_size = load_model(run)
    model.module.cpu()
    expected = predict_probs(model, paths, image_size, "torch")
    with atomic_folder(out) as folder:
        file = folder / FILES[kind]
        write_exported(model, classes, image_size, kind, file)
        apart = np.abs(open_exported(file, just_written=True).probs(paths) - expected).max(axis=1)
        if (worst := int(apart.argmax())) >= 0 and not apart[worst] <= ALLOWED[kind]:
            raise RocLabError(
                f"the exported model and {run.path} differ by {apart[worst]:.2g} in a probability of {paths[worst]}: "
                f"not written (this network cannot be exported to {kind})"
            )
        compared = {"images": len(paths), "largest_difference": float(apart.max())}
        atomic_write(folder / "README.md", model_card(run, FILES[kind], classes, image_size, compared))
    return {"path": str(out), "file": FILES[kind], "classes": classes, **compared}


def model_card(run: VisionRun, file: str, classes: list[str], image_size: int, compared: dict[str, Any]) -> str:
    """Markdown: what the network is, what it was trained on, how good it is, and for what it is not known."""
    config, manifest = run.config, run.manifest
    counts = {split: len(run.images(split)) for split in ("train", "val", "test")}
    weights = config.get("weights", "default")
    by_name = weights.lower() in ("default", "v1", "v2")  # else a file, or a tag of timm
    known = LICENCES.get(config["model"]) if by_name else None
    licence = "none were used" if weights == "none" else known or "not known here: see where the weights came from"
    more = (
        " The head was also trained on images without labels, which are not counted."
        if config.get("unlabelled")
        else ""
    )
    refitted = (
        " The head in this file was fitted once more on training and validation\nimages together; the figures of the "
        "validation images are those of the head before that."
        if (run.checkpoints / BEFORE_REFIT).exists()
        else ""
    )
    figures = [_figures(run, split) for split in ("val", "test") if run.has_results(split)]
    names = escape(", ".join(classes))
    return f"""# {escape(run.label)}: {names if len(classes) <= 12 else f"{len(classes)} classes"}

`{file}` takes one decoded image, `image` (1, height, width, 3), uint8, RGB, any size, upright; it gives
`probabilities` (1, {len(classes)}), float32, in the order of the metadata's `classes` (JSON). Resize, centre crop to
{image_size} px and normalisation are inside. Written by RocLab {__version__}; on {compared["images"]} validation images
its probabilities differ from the run's by at most {compared["largest_difference"]:.1g}.

{ONNX_ALONE if file == FILES["onnx"] else ""}## Data
{escape(manifest["name"])}: {counts["train"]} images to train on, {counts["val"]} to validate (cut
with seed {config["seed"]}), {counts["test"]} to test.{more} SHA-256 of the list of images: {manifest["fingerprint"]}.

Classes: {names}.

## Figures
Top-1 accuracy with its 95 % interval (Wilson).

| split | images | top-1 | macro F1 | calibration error |
|---|---|---|---|---|
{chr(10).join(figures)}

Validation images helped to choose settings; test images did not.{refitted}

## Licence of the weights
Training began from `{weights}` of {config["model"]}. Licence: {licence}. That of your images comes on top.

## Limits
- The figures are of images like those above. Of others, of other cameras or classes, nothing is known.
- Every image gets one of the {len(classes)} classes, also where none of them is in it.
- Only the middle of an image is seen. A probability is no promise: see the calibration error.
- A JPEG of more than four times the resized side is decoded by RocLab at a smaller scale, which is faster; another
  decoder's pixels give slightly other probabilities.
"""


def _figures(run: VisionRun, split: str) -> str:
    found = run.results(split)
    low, high = found["ci95"]["top1"]
    accuracy = f"{100 * found['top1']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    return f"| {split} | {found['n']} | {accuracy} | {found['macro_f1']:.3f} | {found['ece']:.3f} |"
