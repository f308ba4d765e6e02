"""OpenVINO computes what torch computes, is chosen where it is faster, and reports nothing over the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from roclab.core.exceptions import RocLabError
from roclab.vision.config import TrainConfig
from roclab.vision.data.dataset import load_data
from roclab.vision.evaluate.evaluate import evaluate, predict
from roclab.vision.models.backend import FEWEST, compute_features, pick_backend
from roclab.vision.models.classifier import Classifier, build_model
from roclab.vision.models.inference import cached_features, predict_probs
from roclab.vision.train.train import train
from tests.vision.small import MODEL, config, make_images

BATCHES = [np.random.default_rng(i).integers(0, 256, (n, 64, 64, 3), dtype=np.uint8) for i, n in enumerate((5, 5, 2))]


def network(name: str = MODEL) -> Classifier:
    torch.manual_seed(0)
    return build_model(name, "none", 3, 64).to(torch.device("cpu"))


def with_openvino() -> None:
    if find_spec("openvino") is None:  # imported by our code alone, which keeps it from reporting
        pytest.skip("needs the extra openvino")


@pytest.mark.parametrize("name", [MODEL, "efficientnet_lite0"])
def test_both_compute_the_same_features_whatever_the_batch(name: str):
    with_openvino()
    model = network(name)
    expected = np.concatenate(list(compute_features(model, BATCHES, "torch")))
    assert np.allclose(model.features(preprocessed(model, BATCHES[0])).detach(), expected[:5], atol=1e-5)
    found = np.concatenate(list(compute_features(model, BATCHES, "openvino")))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-3 * max(1, np.abs(expected).max())
    again = np.concatenate(list(compute_features(model, [image[None] for b in BATCHES for image in b], "openvino")))
    assert np.array_equal(found, again)
    assert list(compute_features(model, [], "openvino")) == []


def preprocessed(model: Classifier, images: np.ndarray) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.preprocessing.mean, model.preprocessing.std))
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std


def test_auto_takes_openvino_for_many_images_and_convolutional_networks():
    with_openvino()
    assert pick_backend(network(), FEWEST - 1) == "torch"
    assert pick_backend(network(), FEWEST).startswith("openvino 2")
    assert pick_backend(network("timm/test_vit"), FEWEST) == "torch"
    assert pick_backend(network(), FEWEST, "torch") == "torch"
    assert pick_backend(network("timm/test_vit"), 1, "openvino").startswith("openvino 2")


def test_the_cache_keeps_the_backends_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with_openvino()
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    run = train(config(make_images(tmp_path / "images", each=6), backend="torch"), tmp_path / "torch")
    other = train(config(tmp_path / "images", backend="openvino"), tmp_path / "openvino")
    named = [json.loads((r.path / "training.json").read_text())["backend"] for r in (run, other)]
    assert named[0] == "torch"
    assert named[1].startswith("openvino 2")
    assert json.loads((other.path / "provenance.json").read_text())["versions"]["openvino"] == named[1].split()[1]
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 2
    assert evaluate(run)["top1"] == evaluate(other)["top1"]
    paths = sorted((tmp_path / "images").rglob("*.jpg"))
    by_torch, by_openvino = (
        [row["predictions"][0]["probability"] for row in predict(r.path, paths, top=1)] for r in (run, other)
    )
    assert by_torch == pytest.approx(by_openvino, abs=1e-3)
    assert by_torch != by_openvino  # two programs, not one under two names


@pytest.mark.parametrize("view", [0, 1, 3, 5])
def test_views_are_the_same_for_both(tmp_path: Path, view: int, monkeypatch: pytest.MonkeyPatch):
    with_openvino()
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    images = load_data(str(make_images(tmp_path / "images", each=6))).images
    for flips in ("horizontal", "dihedral"):
        a, b = (cached_features(network(), images, 64, view, flips, name)[0] for name in ("torch", "openvino"))
        assert np.abs(a - b).max() < 1e-3 * max(1, np.abs(a).max())


def test_nothing_is_reported_over_the_network(tmp_path: Path):
    with_openvino()
    lines = (
        "import torch, numpy",
        "from roclab.vision.models.backend import compute_features",
        "from roclab.vision.models.classifier import build_model",
        f"model = build_model('{MODEL}', 'none', 3, 64)",
        "list(compute_features(model, [numpy.zeros((1, 64, 64, 3), numpy.uint8)], 'openvino'))",
        "import openvino.tools.ovc.convert_impl as ovc",
        "print(ovc.tm.__name__)",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HOME": str(tmp_path)})
    assert done.stdout.split()[-1] == "openvino.tools.ovc.telemetry_stub", done.stderr
    assert not (tmp_path / "intel").exists()


def test_a_name_that_is_no_backend_is_refused():
    with pytest.raises(RocLabError, match="--backend tensorrt: choose one of auto, torch, openvino"):
        TrainConfig(backend="tensorrt")


def test_a_missing_openvino_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert pick_backend(network(), FEWEST) == "torch"
    with pytest.raises(RocLabError, match=r"pip install 'roclab\[openvino\]'"):
        pick_backend(network(), FEWEST, "openvino")


def test_predictions_do_not_depend_on_the_backend(tmp_path: Path):
    with_openvino()
    paths = sorted(make_images(tmp_path / "images", each=3).rglob("*.jpg"))
    model = network()
    torch.nn.init.normal_(model.head.weight)
    a, b = (predict_probs(model, paths, 64, name) for name in ("torch", "openvino"))
    assert a.shape == (9, 3)
    assert np.abs(a - b).max() < 1e-3
