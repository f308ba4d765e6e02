"""Real runs, small: a tiny network on striped images, three runs trained and evaluated once for all tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("pypandoc")
pytest.importorskip("typst")

from tests.vision import small

NAME = r"Jörg_Müller & Söhne #1 {50%} \ ~ ^ $"


def train_and_evaluate(images: Path, out: Path, split: str = "test", **changes: object) -> Path:
    from roclab.vision.evaluate.evaluate import evaluate
    from roclab.vision.train.train import train

    run = train(small.config(images, **changes), out)
    evaluate(run, split)
    return out


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    return small.make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def trained(images, tmp_path_factory) -> Path:
    """A folder with three finished runs, two arms. Not to be changed: `runs` is a copy."""
    folder = tmp_path_factory.mktemp("trained")
    for seed in (0, 1):
        train_and_evaluate(images, folder / f"features-{seed}", seed=seed, refit=False)
    train_and_evaluate(images, folder / "finetune-0", strategy="finetune", epochs=2, seed=0)
    return folder


@pytest.fixture
def runs(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs", symlinks=True))


@pytest.fixture
def lab(tmp_path) -> Path:
    """What `roclab tokenizer lab` leaves, as far as the hand-in looks at it."""
    folder = tmp_path / "lab"
    folder.mkdir()
    cell = {
        "cell_type": "code", "source": "print('x')", "execution_count": 1, "metadata": {},
        "outputs": [{"output_type": "stream", "name": "stdout", "text": ["opened /home/ada/models/x.json\n"]}],
    }  # fmt: skip
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "Tokenizer_Lab.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    about = {"student_id": "31415", "tokenizers": {}, "sentences": [{"text": "The ID is *five* tokens."}]}
    (folder / "lab.json").write_text(json.dumps(about), encoding="utf-8")
    return folder
