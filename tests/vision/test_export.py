"""An exported network answers as its run does, without RocLab; a model card lies beside it; nothing half is left."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from roclab.core.exceptions import CheckpointError, RocLabError
from roclab.core.runs import Run
from roclab.vision.config import TrainConfig
from roclab.vision.data.transforms import Preprocessing, eval_crop
from roclab.vision.evaluate.evaluate import evaluate, predict
from roclab.vision.evaluate.export import ALLOWED, export, model_card
from roclab.vision.evaluate.run_reader import VisionRun
from roclab.vision.models.classifier import load_model
from roclab.vision.models.exported import FILES, resampled, resampling
from roclab.vision.train.train import train
from tests.vision.conftest import picture
from tests.vision.small import config, make_images

NEEDS = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",), "torchscript": ()}

ALONE = """
import json, sys
import numpy, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(sys.argv[1])
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
for path in sys.argv[2:]:
    image = numpy.asarray(Image.open(path).convert("RGB"))
    probs = session.run(None, {"image": image[None]})[0][0]
    print(json.dumps([classes[probs.argmax()], probs.tolist()]))
assert "torch" not in sys.modules and "roclab" not in sys.modules
"""


def needs(kind: str) -> None:
    if missing := [name for name in NEEDS[kind] if find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} is not installed")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[Path]]:
    folder = tmp_path_factory.mktemp("trained")
    images = make_images(folder / "images", size=90)
    for i, size in enumerate(((200, 70), (31, 64), (64, 64), (65, 300))):
        picture(i, size).save(images / "sky" / f"other-{i}.png")
    run = train(config(images), folder / "run")
    evaluate(run)
    return run, sorted(images.rglob("*.*g"))


@pytest.fixture(scope="module")
def exported(trained: tuple[Run, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs("onnx")
    out = tmp_path_factory.mktemp("exported") / "out"
    export(trained[0], "onnx", out)
    Image.new("RGB", (70, 50)).save(out / "image.png")
    return out


@pytest.mark.parametrize("size", [(500, 333), (333, 500), (256, 256), (224, 999), (100, 80), (31, 17)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_resize_is_pillows(size: tuple[int, int], interpolation: str):
    preprocessing, image = Preprocessing(256, 224, interpolation=interpolation), picture(3, size)
    expected = np.asarray(eval_crop(preprocessing)(image)).astype(int)
    sides = [torch.tensor([side]) for side in (size[1], size[0])]
    down, across = (resampling(side, min(sides), preprocessing, 224) for side in sides)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert np.array_equal(resampled(pixels, down, across).permute(1, 2, 0).int().numpy(), expected)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_predict_takes_the_exported_file(trained: tuple[Run, list[Path]], tmp_path: Path, kind: str):
    needs(kind)
    run, paths = trained
    done = export(run, kind, tmp_path / "out")
    assert done["images"] >= 5
    assert done["largest_difference"] <= 1e-3
    expected = predict(run.path, paths, top=3)
    for given in (tmp_path / "out", tmp_path / "out" / FILES[kind]):
        found = predict(given, paths, top=3)
        assert [row["path"] for row in found] == [row["path"] for row in expected]
        for mine, theirs in zip(found, expected, strict=True):
            by_class = {p["class"]: p["probability"] for p in theirs["predictions"]}
            assert {p["class"]: p["probability"] for p in mine["predictions"]} == pytest.approx(by_class, abs=1e-3)


def by_onnx_runtime_alone(file: Path, paths: list[Path]) -> tuple[list[str], np.ndarray]:
    """Classes and probabilities (N, C), in a process without torch and RocLab."""
    command = [sys.executable, "-c", ALONE, file, *paths]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return [name for name, _ in rows], np.array([probs for _, probs in rows])


def assert_same_predictions(run: Run, file: Path, paths: list[Path]) -> None:
    names, probs = by_onnx_runtime_alone(file, paths)
    found = predict(run.path, paths, top=probs.shape[1])
    classes = load_model(run)[1]
    expected = np.array(
        [[{p["class"]: p["probability"] for p in row["predictions"]}[c] for c in classes] for row in found]
    )
    assert np.abs(probs - expected).max() <= 1e-3
    for name, row, values in zip(names, found, np.sort(expected), strict=True):
        assert name == row["predictions"][0]["class"] or values[-1] - values[-2] < 2e-3


def test_onnx_runtime_alone_gives_the_runs_predictions(trained: tuple[Run, list[Path]], tmp_path: Path):
    needs("onnx")
    run, paths = trained
    export(run, "onnx", tmp_path / "out")
    assert_same_predictions(run, tmp_path / "out" / "model.onnx", paths)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["efficientnet_lite0", "resnet50"])
def test_two_hundred_test_images_of_the_pets(shared_data: Path, tmp_path: Path, model: str):
    needs("onnx")
    weights = "default" if model == "efficientnet_lite0" else next((shared_data / "weights").glob("resnet50*"))
    about = {"data": "pets", "data_root": str(shared_data / "pets3"), "weights": str(weights), "device": "cpu"}
    run = train(TrainConfig(**about, model=model, image_size=224), tmp_path / "run")
    export(run, "onnx", tmp_path / "out")
    test = VisionRun.open(run.path).dataset().test(opened_by="evaluate")
    assert_same_predictions(run, tmp_path / "out" / "model.onnx", [image.path for image in test][:200])


def test_the_card_says_data_figures_licence_and_limits(trained: tuple[Run, list[Path]], tmp_path: Path):
    run = trained[0]
    export(run, "torchscript", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    found = json.loads((run.path / "results-val.json").read_text())
    assert f"| val | {found['n']} | {100 * found['top1']:.1f} % [" in card
    for words in ("brick, grass, sky", "## Licence of the weights", "none were used", "## Limits", "cut\nwith seed 0",
                  "fitted once more"):  # fmt: skip
        assert words in card, words
    assert "onnxruntime" not in card


def test_the_card_of_an_onnx_file_shows_how_to_use_it_alone(trained: tuple[Run, list[Path]], tmp_path: Path):
    needs("onnx")
    run, paths = trained
    export(run, "onnx", tmp_path / "out")
    code = (tmp_path / "out" / "README.md").read_text().split("```")[1].removeprefix("python\n")
    code = code.replace('"model.onnx"', repr(str(tmp_path / "out" / "model.onnx"))).replace(
        '"image.jpg"', repr(str(paths[0]))
    )
    names: dict[str, Any] = {}
    exec(code, names)
    first = predict(run.path, paths[:1])[0]["predictions"][0]
    assert names["classes"][names["probabilities"].argmax()] == first["class"]
    assert names["probabilities"].max() == pytest.approx(first["probability"], abs=1e-3)


@pytest.mark.parametrize(
    ("model", "weights", "said"),
    [
        ("efficientnet_lite0", "default", "Apache-2.0"),
        ("resnet50", "v2", "torchvision is BSD-3-Clause"),
        ("resnet50", "gone/pqf.safetensors", "not known here"),
        ("timm/convnext_tiny", "default", "not known here"),
        ("resnet50", "none", "none were used"),
    ],
)
def test_the_card_names_a_licence_only_where_it_is_known(
    trained: tuple[Run, list[Path]], model: str, weights: str, said: str
):
    run = VisionRun(trained[0].path, trained[0].config | {"model": model, "weights": weights})
    compared = {"images": 20, "largest_difference": 1e-6}
    assert f"Licence: {said}" in model_card(run, "model.onnx", ["brick", "grass", "sky"], 64, compared)


def test_the_card_says_that_images_without_labels_were_used(trained: tuple[Run, list[Path]]):
    compared = {"images": 20, "largest_difference": 1e-6}
    cards = [
        model_card(VisionRun(trained[0].path, trained[0].config | more), "model.onnx", ["brick", "sky"], 64, compared)
        for more in ({}, {"unlabelled": "spare"})
    ]
    assert ["images without labels" in card for card in cards] == [False, True]


def test_a_network_that_answers_otherwise_is_not_handed_over(
    trained: tuple[Run, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(ALLOWED, "torchscript", -1.0)  # as if every difference were too large
    with pytest.raises(RocLabError, match=r"differ by .* in a probability of .*: not written"):
        export(trained[0], "torchscript", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line(trained: tuple[Run, list[Path]], tmp_path: Path):
    run, paths = trained
    with pytest.raises(RocLabError, match="--to tflite: choose one of onnx, torchscript, openvino"):
        export(run, "tflite", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(RocLabError, match="is there already"):
        export(run, "torchscript", tmp_path / "full")
    for name in ("model.onnx", "model.xml"):
        (tmp_path / name).write_bytes(b"no model")
        if all(find_spec(needed) for kind, file in FILES.items() if file == name for needed in NEEDS[kind]):
            with pytest.raises(CheckpointError, match=r"not a model of .roclab vision export., or damaged \("):
                predict(tmp_path / name, paths)
    with pytest.raises(CheckpointError, match=r"mine.txt is no model that can be opened: name the model.onnx"):
        predict(tmp_path / "full" / "mine.txt", paths)
    with pytest.raises(RocLabError):
        predict(tmp_path / "full", paths)
    with pytest.raises(RocLabError, match="--device cuda: an exported model is computed on the CPU"):
        predict(tmp_path / "model.onnx", paths, device="cuda")


class Writes(torch.nn.Module):
    """A network whose file writes another file when it is run."""

    def __init__(self, victim: str):
        super().__init__()
        self.victim = victim

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        numbers = torch.from_file(self.victim, shared=True, size=3, dtype=torch.float32)
        return numbers.fill_(1 / 3)[None]


def test_a_program_is_not_run(trained: tuple[Run, list[Path]], tmp_path: Path):
    about = {"classes": '["a", "b", "c"]', "resize": "73"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        torch.jit.script(Writes(str(tmp_path / "written"))).save(str(tmp_path / "model.pt"), _extra_files=about)
    for given in (tmp_path, tmp_path / "model.pt"):
        with pytest.raises(CheckpointError, match=r"model.pt is TorchScript, a program, .* export --to onnx"):
            predict(given, trained[1])
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ('["a", "b"]', "no probabilities of its 2 classes"),
        ('["a", "b", "c", "d"]', "no probabilities of its 4 classes"),
        ('{"a": 1, "b": 2, "c": 3}', "not a list of names"),
        ("[1, 2, 3]", "not a list of names"),
        ('"abc"', "not a list of names"),
        ("null", "not a list of names"),
        ("[", "damaged"),
    ],
)
def test_classes_that_are_not_the_networks(exported: Path, tmp_path: Path, classes: str, said: str):
    import onnx

    model = onnx.load(exported / "model.onnx")
    onnx.helper.set_model_props(model, {"classes": classes, "resize": "73"})
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match=said):
        predict(tmp_path, [exported])


def test_weights_that_are_no_numbers(exported: Path, tmp_path: Path):
    import onnx

    model = onnx.load(exported / "model.onnx")
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.raw_data = np.full(len(largest.raw_data) // 4, np.nan, np.float32).tobytes()
    onnx.save(model, tmp_path / "model.ONNX")
    with pytest.raises(CheckpointError, match=r"model.ONNX .* no probabilities"):
        predict(tmp_path / "model.ONNX", [exported])


def test_openvinos_reason_is_not_a_place_in_its_source(trained: tuple[Run, list[Path]], tmp_path: Path):
    needs("openvino")
    export(trained[0], "openvino", tmp_path / "out")
    (tmp_path / "out" / "model.bin").unlink()
    with pytest.raises(CheckpointError, match="bin file cannot be found"):
        predict(tmp_path / "out", trained[1])


def test_the_run_itself_is_left_as_it_was(trained: tuple[Run, list[Path]], tmp_path: Path):
    run = trained[0]
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    export(run, "torchscript", tmp_path / "out")
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert load_model(run)[1] == ["brick", "grass", "sky"]


def test_a_grey_image_and_one_with_transparency(trained: tuple[Run, list[Path]], exported: Path, tmp_path: Path):
    Image.new("LA", (70, 50), (200, 0)).save(tmp_path / "clear.png")
    (mine,), (theirs,) = (predict(given, [tmp_path / "clear.png"], top=1) for given in (exported, trained[0].path))
    assert mine["predictions"][0]["class"] == theirs["predictions"][0]["class"]
