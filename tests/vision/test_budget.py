"""The budget: what is chosen fits, larger budgets never choose less, and a hopeless one is refused."""

import pytest
import torch

from roclab.core.exceptions import RocLabError
from roclab.core.progress import duration
from roclab.vision.config import with_defaults
from roclab.vision.data.dataset import load_data
from roclab.vision.models.classifier import build_model
from roclab.vision.train.budget import Costs, fit_to_budget, measure, parse_duration
from roclab.vision.train.train import train
from tests.vision.small import MODEL, config, make_images


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("1.5h", 5400)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "1.2.3m", "-5m", "5 minutes"])
def test_what_is_no_duration(text):
    with pytest.raises(RocLabError, match="--budget"):
        parse_duration(text)


def test_durations_in_words():
    assert [duration(s) for s in (12.3, 600, 7500)] == ["12 s", "10 min", "2 h 05 min"]


def fixed_costs(monkeypatch):
    """A machine that takes 10 ms forward and 40 ms with the backward pass, for choices that can be foreseen."""
    monkeypatch.setattr("roclab.vision.train.budget.measure", lambda *a, training, **k: 0.04 if training else 0.01)
    monkeypatch.setattr("roclab.vision.train.budget.image_seconds", lambda *a: 0.001)


def test_choice_fits_and_grows_with_the_budget(tmp_path, monkeypatch):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    fixed_costs(monkeypatch)
    data = load_data(str(make_images(tmp_path / "images")))
    model = build_model(MODEL, "none", 3)
    before = None
    for seconds in (3, 5, 7, 10, 20, 100):
        open_settings = config(tmp_path, strategy="finetune", epochs=None, image_size=None, budget=f"{seconds}s")
        settings = with_defaults(open_settings, 224)
        chosen, said = fit_to_budget(settings, model, data)
        expected = Costs(settings, model, data).seconds(chosen)
        assert expected <= seconds
        assert duration(expected) in said
        assert str(chosen.epochs) in said
        size = (chosen.image_size, chosen.epochs)
        assert before is None or size >= before
        before = size
    assert before == (224, settings.epochs)
    hopeless = with_defaults(config(tmp_path, strategy="finetune", budget="0.1s", image_size=None), 224)
    with pytest.raises(RocLabError, match="too short"):
        fit_to_budget(hopeless, model, data)


def test_measuring_leaves_the_model_and_the_generator_alone():
    model = build_model(MODEL, "none", 3)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert measure(model, 64, training=True, seconds=0.0) > 0
    assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    assert not model.module.training
    assert all(p.grad is None for p in model.module.parameters())


def test_a_run_with_a_budget_says_what_it_chose_and_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    fixed_costs(monkeypatch)
    images = make_images(tmp_path / "images", each=6)
    settings = config(images, strategy="finetune", image_size=None, budget="2s", batch_size=4)
    run = train(settings, tmp_path / "run")
    assert "budget 2s: " in (run.path / "log.txt").read_text()
    assert run.metrics()[-1]["epoch"] == run.config["epochs"]
    assert run.config["image_size"] < 224 or run.config["epochs"] < 12
