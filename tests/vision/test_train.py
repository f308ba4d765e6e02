"""Both strategies from images to a finished run: what is frozen stays frozen, what is cut goes on bit for bit."""

import csv
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from roclab.core.exceptions import RocLabError
from roclab.core.provenance import seed_everything
from roclab.core.runs import Run
from roclab.core.settings import settings_from
from roclab.core.training.checkpointing import load_tensors
from roclab.core.training.memory import peak_memory_mb, reset_peak_memory
from roclab.core.training.optimizer import warmup_cosine
from roclab.vision.compare import compare
from roclab.vision.config import COMMON, TrainConfig, fill, with_defaults
from roclab.vision.data.dataset import labels_of
from roclab.vision.data.loader import epoch_batches
from roclab.vision.evaluate.evaluate import evaluate, predict
from roclab.vision.evaluate.run_reader import VisionRun
from roclab.vision.models import inference
from roclab.vision.models.classifier import build_model, load_model
from roclab.vision.models.inference import dataset_features, predict_probs
from roclab.vision.train.finetune import freeze_statistics, parameter_groups, size_at
from roclab.vision.train.head import fit_head
from roclab.vision.train.mixing import mix, neighbours
from roclab.vision.train.train import resume, train
from tests.vision.small import CLASSES, MODEL, config, make_images


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))


FINETUNE = {"strategy": "finetune", "epochs": 3, "batch_size": 8, "lr": 3e-3, "progressive": True}


def test_features_give_a_whole_model(images, tmp_path):
    run = train(config(images, refit=False), tmp_path / "run")
    for name in ("config.json", "provenance.json", "split.json", "log.txt", "metrics.jsonl", "training.json"):
        assert (run.path / name).exists(), name
    model, classes, size = load_model(run)
    assert classes == sorted(CLASSES)
    dataset = VisionRun.open(run.path).dataset()
    val = dataset.split("val")
    # the features looked up and the whole model on the images themselves say the same
    read = VisionRun.open(run.path).predictions("val")
    assert np.allclose(predict_probs(model, [p.path for p in val], size), read.probs, atol=1e-5)
    found = json.loads((run.path / "results-val.json").read_text())
    assert found["top1"] == (read.probs.argmax(1) == read.labels).mean() > 0.5
    assert found["n"] == len(val)


def test_frozen_means_frozen(images, tmp_path):
    run = train(config(images, seed=3), tmp_path / "run")
    seed_everything(3)
    before = build_model(MODEL, "none", 3).backbone_state()
    after = load_model(run)[0].backbone_state()
    assert before.keys() == after.keys()
    assert any("running_mean" in name for name in before)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def test_second_run_takes_features_from_the_cache(images, tmp_path, monkeypatch):
    first = train(config(images, val_fraction=0.2), tmp_path / "a")
    calls = []
    monkeypatch.setattr(inference, "read_ahead", lambda *given: calls.append(given))
    second = train(config(images, val_fraction=0.4), tmp_path / "b")  # another cut of the same images
    assert not calls
    more, fewer = (len(VisionRun.open(run.path).predictions("val").labels) for run in (second, first))
    assert more > fewer


def test_a_damaged_cache_is_computed_again(images, tmp_path):
    first = train(config(images), tmp_path / "a")
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    second = train(config(images), tmp_path / "b")
    assert same_weights(first, second)


def test_refit_keeps_the_validation_figures_honest(images, tmp_path):
    plain = train(config(images, refit=False), tmp_path / "plain")
    refit = train(config(images, refit=True), tmp_path / "refit")
    timing = [json.loads((run.path / "training.json").read_text()) for run in (plain, refit)]
    assert all(row["regularisation"] for row in timing)
    # val is judged by a head that has not seen it, whatever the final one has learnt from
    dataset = VisionRun.open(refit.path).dataset()
    x = dataset_features(load_model(refit)[0], dataset, 64)[0]
    y = labels_of(dataset.split("train"))
    head = fit_head(x["train"], y, 3, timing[1]["c"])
    assert np.allclose(VisionRun.open(refit.path).predictions("val").probs, head.probs(x["val"]), atol=1e-5)
    assert not same_weights(plain, refit)  # test and prediction by the one that has


def test_views_are_more_rows_of_the_same_images(images, tmp_path):
    run = train(config(images, views=3), tmp_path / "run")
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 3
    assert json.loads((run.path / "results-val.json").read_text())["top1"] > 0.5


def test_the_test_split_is_opened_by_evaluate_alone_and_recorded(images, tmp_path):
    run = train(config(images), tmp_path / "run")
    with open(run.path / "predictions.csv", newline="") as file:
        assert {row["split"] for row in csv.DictReader(file)} == {"val"}
    assert not (run.path / "test_opened.json").exists()
    found = evaluate(run, "test")
    assert len(json.loads((run.path / "test_opened.json").read_text())) == 1
    assert found["split"] == "test"
    with open(run.path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"val", "test"}
    assert sum(row["split"] == "test" for row in rows) == found["n"]
    with pytest.raises(RocLabError, match="choose val or test"):
        evaluate(run, "train")


def test_images_that_moved_are_found_again(images, tmp_path):
    moved = shutil.copytree(images, tmp_path / "before")
    run = train(config(moved), tmp_path / "run")
    shutil.move(moved, tmp_path / "after")
    with pytest.raises(RocLabError, match="--data-root"):
        evaluate(run, "test")
    assert evaluate(run, "test", data_root=str(tmp_path / "after"))["n"] > 0


def test_finetuning_learns(images, tmp_path):
    run = train(config(images, **FINETUNE), tmp_path / "run")
    rows = run.metrics()
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert [row["image_size"] for row in rows[1:]] == [32, 64, 64]
    assert rows[-1]["train_loss"] < np.log(3)
    found = evaluate(run, "val")
    assert found["top1"] == max(row["val_top1"] for row in rows)
    assert found["mean_train_seconds_per_epoch"] > 0
    assert found["epochs_to_convergence"] in (0, 1, 2, 3)
    backbone = build_model(MODEL, "none", 3).backbone_state()
    assert any(not torch.equal(value, backbone[name]) for name, value in load_model(run)[0].backbone_state().items())


def test_a_trained_head_that_finetuning_only_harms_stays_the_best(images, tmp_path):
    run = train(config(images, **FINETUNE | {"lp_ft": True, "lr": 0.3, "ema": 0.0}), tmp_path / "run")
    rows = run.metrics()
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert json.loads((run.path / "training.json").read_text())["best_epoch"] == 0
    found = json.loads((run.path / "results-val.json").read_text())
    assert found["top1"] == rows[0]["val_top1"]
    assert found["epochs_to_convergence"] == 0
    seed_everything(0)
    frozen = build_model(MODEL, "none", 3).backbone_state()
    assert all(torch.equal(value, frozen[name]) for name, value in load_model(run)[0].backbone_state().items())


def test_unknown_optimizers_are_named(images):
    with pytest.raises(RocLabError, match="--optimizer adam: choose one of adamw, sgd"):
        config(images, optimizer="adam")


def same_weights(a: Run, b: Run, which: str = "best") -> bool:
    one, other = (load_tensors(run.checkpoints / f"{which}.safetensors")[0] for run in (a, b))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


TIMES = ("train_seconds", "images_per_second", "head_seconds")


def without_times(run: Run) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in run.metrics()]


RECIPES = {
    "all": {
        "mixup": 0.2,
        "cutmix": 1.0,
        "accumulate": 2,
        "randaugment": True,
        "ema": 0.9,
        "gradual": 0.4,
        "batch_norm": "train",
        "lp_ft": True,
    },
    "sgd": {"optimizer": "sgd", "lr": 1e-2, "lp_ft": True},
    "plain": {"ema": 0.0, "lp_ft": False, "batch_norm": "frozen", "patience": 2},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_workers_and_repetition_change_no_bit(images, tmp_path, recipe):
    settings = FINETUNE | RECIPES[recipe]
    first = train(config(images, **settings), tmp_path / "a")
    second = train(config(images, **settings, workers=2), tmp_path / "b")
    assert same_weights(first, second)
    assert without_times(first) == without_times(second)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("cut", ["after epoch 1", "state lost", "metrics torn", "before the end"])
def test_resume_after_a_cut_between_any_two_files(images, tmp_path, recipe, cut):
    settings = FINETUNE | RECIPES[recipe]
    whole = train(config(images, **settings), tmp_path / "whole")
    cut_run = tmp_path / "cut"
    stopped = train(config(images, **settings), cut_run)
    (cut_run / "training.json").unlink()
    if cut == "after epoch 1":  # the state of epoch 1 with the rows of all three
        one = train_until(images, tmp_path / "one", settings, 1)
        shutil.copy(one / "checkpoints" / "last.safetensors", stopped.checkpoints / "last.safetensors")
    elif cut == "state lost":
        (stopped.checkpoints / "last.safetensors").unlink()
    elif cut == "metrics torn":
        path = cut_run / "metrics.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
    resume(cut_run)
    assert same_weights(whole, stopped, "best")
    assert same_weights(whole, stopped, "last")
    assert without_times(whole) == without_times(stopped)
    assert (whole.path / "predictions.csv").read_text() == (cut_run / "predictions.csv").read_text()


def train_until(images, path, settings, epoch):
    """A run that was interrupted at the end of an epoch, as Ctrl-C would."""
    from roclab.vision.train import finetune

    kept = finetune.save_state

    def save_then_stop(*given):
        kept(*given)
        if given[-1]["epoch"] == epoch:
            raise KeyboardInterrupt

    finetune.save_state = save_then_stop
    try:
        with pytest.raises(KeyboardInterrupt):
            train(config(images, **settings), path)
    finally:
        finetune.save_state = kept
    return path


@pytest.mark.slow  # eight processes that import torch; the test above covers each cut in one process
@pytest.mark.parametrize("strategy", ["features", "finetune"])
def test_resume_after_kill_9_at_several_moments(images, tmp_path, strategy):
    """A process killed again and again, each time a little later, ends with the bits of one never interrupted."""
    command = [sys.executable, "-m", "roclab", "vision", "train"]
    options = ["--data", str(images), "--model", MODEL, "--weights", "none", "--image-size", "64"]
    options += ["--strategy", strategy, "--epochs", "4", "--batch-size", "8", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*command, *options, "--out", str(whole)], check=True, env=environment)
    environment["ROCLAB_CACHE"] = str(tmp_path / "another cache")
    moments = {
        "features": ["cut/config.json", "another cache/features/*/*.safetensors", "cut/checkpoints/best.safetensors"],
        "finetune": ["cut/config.json", "cut/checkpoints/best.safetensors", "cut/checkpoints/last.safetensors"],
    }[strategy]
    for moment in moments:
        go = ["--resume", str(cut)] if (cut / "config.json").exists() else [*options, "--out", str(cut)]
        before = {path: path.stat().st_mtime_ns for path in tmp_path.glob(moment)}
        assert moment == moments[0] or (cut / "config.json").exists()
        process = subprocess.Popen([*command, *go], env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None:  # until the file of that moment is there, or is a newer one
            if any(before.get(path) != path.stat().st_mtime_ns for path in tmp_path.glob(moment)):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        assert process.wait() == -signal.SIGKILL, moment
    go = ["--resume", str(cut)] if (cut / "config.json").exists() else [*options, "--out", str(cut)]
    subprocess.run([*command, *go], check=True, env=environment)
    assert same_weights(Run.open(whole), Run.open(cut))
    assert without_times(Run.open(whole)) == without_times(Run.open(cut))


def test_a_folder_with_other_files_is_left_alone(images, tmp_path):
    before = sorted(images.rglob("*"))
    with pytest.raises(RocLabError, match="holds other files, which a run could overwrite"):
        train(config(images), images)
    with pytest.raises(RocLabError, match="holds other files and no comparison"):
        compare(config(images), ["resnet18"], ["features"], [0], images)
    assert sorted(images.rglob("*")) == before


def test_a_run_folder_is_not_overwritten_and_not_judged_unfinished(images, tmp_path):
    run = train(config(images), tmp_path / "run")
    with pytest.raises(RocLabError, match="already holds a run"):
        train(config(images), tmp_path / "run")
    (run.path / "training.json").unlink()
    with pytest.raises(RocLabError, match="not finished"):
        evaluate(Run.open(run.path), "val")


def test_peak_memory_is_counted_anew():
    big = np.ones(300 << 17)  # 300 MB
    reset_peak_memory()
    high = peak_memory_mb()
    del big
    reset_peak_memory()
    if sys.platform == "linux":
        assert peak_memory_mb() < high - 200


STEPS = """
import resource, sys, torch
from roclab.core.training.memory import keep_freed_memory
def faults():  # pages given to the process while it takes and frees 40 MB ten times
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(10 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
if sys.argv[1] == "kept":
    keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is what is tuned")
def test_freed_memory_is_kept_for_the_next_step():
    def run(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", STEPS, mode], capture_output=True, text=True, check=True)
        return int(done.stdout)

    usual, kept = run("usual"), run("kept")
    if usual < 1000:
        pytest.skip("this system gives memory in large pages")
    assert kept < usual / 10


@pytest.mark.parametrize("device", ["banana", "cuda:77"])
def test_a_device_that_is_not_there_leaves_no_run(images, tmp_path, device):
    with pytest.raises(RocLabError, match=f"--device {device}: not usable"):
        train(config(images, device=device), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_predict_names_the_likeliest_classes_in_order(images, tmp_path):
    run = train(config(images), tmp_path / "run")
    found = predict(run.path, [images / "sky", images / "brick" / "00.jpg"], top=2)
    assert len(found) == 13
    for row in found:
        first, second = row["predictions"]
        assert first["probability"] >= second["probability"]
    assert sum(row["predictions"][0]["class"] == "sky" for row in found[:12]) > 6
    with pytest.raises(RocLabError, match="no such image"):
        predict(run.path, [images / "nowhere.jpg"])


def test_damaged_or_foreign_checkpoints_are_refused_in_one_line(images, tmp_path):
    run = train(config(images), tmp_path / "run")
    path = run.checkpoints / "best.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(RocLabError, match="damaged"):
        load_model(run)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (None, "has no data, strategy, seed, image_size, epochs: "),
        ({"model": 3}, "model is 3, which should be str: "),
        ({"seed": True}, "seed is True, which should be int: "),
        ({"lr": "0.1"}, "lr is '0.1', which should be float: "),
        ({"image_size": None}, "image_size is None, which should be int: "),
        ({"data_root": ["here"]}, "data_root is ['here'], which should be str or None: "),
    ],
)
def test_a_damaged_config_is_named_before_anything_is_written(images, tmp_path, changes, said):
    run = train(config(images), tmp_path / "run")
    path = run.path / "config.json"
    path.write_text(json.dumps({"model": 3} if changes is None else run.config | changes), encoding="utf-8")
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    for judge in (lambda: evaluate(Run.open(run.path), "test"), lambda: resume(run.path)):
        with pytest.raises(RocLabError, match=f"^{re.escape(str(path))}:? {re.escape(said)}restore the file, or train"):
            judge()
    assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before


def test_a_config_of_an_older_version_has_defaults_for_what_came_later(images, tmp_path):
    run = train(config(images), tmp_path / "run")
    older = {key: value for key, value in run.config.items() if key not in ("optimizer", "gradual", "full_frame")}
    read = settings_from(TrainConfig, older | {"lr": 1}, "config.json", ("data",))  # JSON has one word for 1 and 1.0
    assert fill(read, COMMON).optimizer == "adamw"


def test_layer_groups_learn_less_towards_the_image_and_decay_spares_norms():
    model = build_model(MODEL, "none", 3)
    settings = with_defaults(config("x", strategy="finetune"), 64)
    groups = parameter_groups(model, settings.layer_decay, settings.weight_decay)
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.module.parameters())
    scales = [g["scale"] for g in groups]
    assert scales == sorted(scales)
    assert scales[-1] == 1.0
    for group in groups:
        for p in group["params"]:
            assert (group["weight_decay"] > 0) == (p.ndim > 1)


def test_early_layers_rest_and_wake(images, tmp_path):
    settings = FINETUNE | {"epochs": 2, "gradual": 0.5, "ema": 0.0}
    one = train_until(images, tmp_path / "run", settings, 1)
    state, _ = load_tensors(one / "checkpoints" / "last.safetensors")
    seed_everything(0)
    fresh = build_model(MODEL, "none", 3)
    names = {id(p): name for name, p in fresh.module.named_parameters()}
    layers = fresh.layer_groups()
    moved = [[not torch.equal(p, state[f"model.{names[id(p)]}"]) for p in layer] for layer in layers]
    half = len(layers) // 2
    assert half
    assert not any(any(layer) for layer in moved[:half])
    assert all(any(layer) for layer in moved[half:])
    resume(one)
    state, _ = load_tensors(one / "checkpoints" / "last.safetensors")
    assert any(not torch.equal(p, state[f"model.{names[id(p)]}"]) for p in layers[0])


def test_rate_warms_up_and_comes_down():
    rates = [warmup_cosine(i, 100, peak=1.0, warmup=0.1) for i in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] < 0.001


def test_image_size_rises_with_the_epochs():
    assert [size_at(e, 10, 224, progressive=True) for e in (0, 3, 5, 6, 9)] == [128, 160, 160, 192, 192]
    for epochs, sizes in ((1, [192]), (2, [128, 192])):
        assert [size_at(e, epochs, 224, progressive=True) for e in range(epochs)] == sizes
    assert size_at(0, 1, 16, progressive=True) == 16
    assert size_at(0, 10, 224, progressive=False) == 224


def test_mixing_keeps_the_share_of_each_label():
    images = torch.stack([torch.full((3, 32, 32), float(i)) for i in range(4)])
    for name in ("mixup", "cutmix"):
        mixed, lam = mix(images, **{"mixup": 0.0, "cutmix": 0.0, name: 1.0}, seed=1)
        assert 0 < lam < 1
        for i, j in enumerate(neighbours(4)):
            assert mixed[i].mean().item() == pytest.approx(lam * i + (1 - lam) * j, abs=1e-5)
    assert neighbours(5) == [1, 0, 3, 2, 4]


def test_frozen_statistics_do_not_move():
    module = build_model(MODEL, "none", 3).module
    before = {name: value.clone() for name, value in module.named_buffers()}
    module.train()
    freeze_statistics(module)
    module(torch.randn(4, 3, 64, 64))
    assert all(torch.equal(before[name], value) for name, value in module.named_buffers())


def test_batches_are_a_partition_that_another_seed_or_epoch_shuffles():
    one = epoch_batches(20, 8, seed=0, epoch=0)
    assert [len(b) for b in one] == [8, 8]
    assert len({i for b in one for i in b}) == 16
    assert one != epoch_batches(20, 8, 0, 1)
    assert one != epoch_batches(20, 8, 1, 0)
    assert epoch_batches(3, 8, 0, 0, processes=2) == [epoch_batches(3, 8, 0, 0, processes=2)[0]]
    assert len(epoch_batches(3, 8, 0, 0, processes=2)[0]) == 2
