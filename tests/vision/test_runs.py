"""Runs where things are not as they were: other options, moved files, full disks, other machines, other scripts."""

import errno
import multiprocessing
import os
import shutil
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from roclab.cli import app
from roclab.core.exceptions import RocLabError
from roclab.core.files import file_sha256, read_json, write_json
from roclab.core.runs import Run
from roclab.core.training.checkpointing import load_tensors
from roclab.vision.compare import compare
from roclab.vision.data.dataset import labels_of, load_data
from roclab.vision.data.images import FactCache, inspect_images
from roclab.vision.data.loader import TrainImages, batches
from roclab.vision.data.transforms import Preprocessing, train_transform
from roclab.vision.evaluate.evaluate import evaluate, evaluate_on, predict
from roclab.vision.evaluate.figures import confusion, new_figure, save_figure
from roclab.vision.evaluate.run_reader import VisionRun
from roclab.vision.models import inference
from roclab.vision.models.classifier import build_model, load_model
from roclab.vision.train.train import resume, train
from tests.vision.small import MODEL, config, make_images

FINETUNE = {"strategy": "finetune", "epochs": 2, "batch_size": 8, "lr": 3e-3}


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"), each=8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))


def cut(run: Run) -> Run:
    """As if it had been killed before its last file."""
    (run.path / "training.json").unlink()
    return Run.open(run.path)


def digest(run: Run, name: str = "best") -> str:
    return file_sha256(run.checkpoints / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--epochs 40 --lr 1e-4", "epochs = 2, now asked for 40; lr = 0.003, now asked for 0.0001"),
        ("--seed 7", "seed = 0, now asked for 7"),
        ("--data elsewhere", "now asked for elsewhere: a resumed run keeps its settings .--data-root says where"),
        ("--model resnet50 --mixup 0", f"model = {MODEL}, now asked for resnet50: a"),  # it has no mixup either
    ],
)
def test_resume_with_other_options_says_which_are_fixed(images, tmp_path, options, said):
    run = train(config(images, **FINETUNE, seed=0), tmp_path / "run")
    before = (run.path / "metrics.jsonl").read_bytes()
    for _ in ("finished", "cut"):
        with pytest.raises(RocLabError, match=said):
            app(["vision", "train", "--resume", str(run.path), *options.split()], standalone_mode=False)
        if (run.path / "training.json").exists():
            cut(run)
    assert (run.path / "metrics.jsonl").read_bytes() == before
    assert not (run.path / "training.json").exists()
    app(["vision", "train", "--resume", str(run.path), "--device", "cpu", "--epochs", "2"], standalone_mode=False)
    assert (run.path / "training.json").exists()


def test_a_frozen_run_has_no_epochs_to_resume_with(images, tmp_path):
    runs = [train(config(images, epochs=epochs), tmp_path / str(epochs)) for epochs in (1, None)]
    assert [run.config["epochs"] for run in runs] == [None, None]
    assert digest(runs[0]) == digest(runs[1])
    resume(cut(runs[0]).path, epochs=1)
    write_json(runs[1].path / "config.json", runs[1].config | {"epochs": 3})  # as an older version wrote it
    resume(cut(runs[1]).path)
    assert digest(runs[0]) == digest(runs[1])
    assert len(runs[1].metrics()) > 3


@pytest.mark.parametrize("strategy", ["features", "finetune"])
def test_resuming_needs_no_weights_file(images, tmp_path, strategy):
    torch.manual_seed(1)
    torch.save(build_model(MODEL, "none").module.state_dict(), tmp_path / "mine.pth")
    settings = config(images, weights=str(tmp_path / "mine.pth"), **FINETUNE | {"strategy": strategy})
    run = train(settings, tmp_path / "run")
    whole = digest(run)
    (tmp_path / "mine.pth").rename(tmp_path / "moved.pth")
    resume(cut(run).path)
    assert digest(run) == whole
    (run.checkpoints / "last.safetensors").unlink()  # cut before the first was saved: it does need them
    with pytest.raises(RocLabError, match=r"mine.pth: there is no such file"):
        resume(cut(run).path)
    resume(run.path, weights=str(tmp_path / "moved.pth"))
    assert digest(run) == whole
    torch.save(build_model(MODEL, "none").module.state_dict(), tmp_path / "other.pth")
    (run.checkpoints / "last.safetensors").unlink()
    with pytest.raises(RocLabError, match="began from the weights"):
        resume(cut(run).path, weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize("strategy", ["features", "finetune"])
def test_no_links_are_required_of_the_file_system(images, tmp_path, monkeypatch, strategy):
    usual = train(config(images, **FINETUNE | {"strategy": strategy}), tmp_path / "usual")

    def refuse(source, target, *more, **others):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)

    monkeypatch.setattr(os, "symlink", refuse)
    run = train(config(images, **FINETUNE | {"strategy": strategy}), tmp_path / "run")
    assert digest(run) == digest(usual)
    assert strategy == "finetune" or digest(run, "last") == digest(usual)
    assert not (run.checkpoints / "last.safetensors").is_symlink()
    resume(cut(run).path)
    assert digest(run) == digest(usual)


def test_leftovers_of_killed_writers_are_swept(images, tmp_path):
    run = train(config(images), tmp_path / "run")
    left = [run.path / ".config.json.0123abcd.part", run.checkpoints / ".best.safetensors.0123abcd.part"]
    for path in left:
        path.write_bytes(b"half")
    (run.path / "notes.part").touch()  # the user's
    resume(cut(run).path)
    assert not any(path.exists() for path in left)
    assert (run.path / "notes.part").exists()
    (tmp_path / ".a[1].json.0123abcd.part").mkdir()  # what is written to just now may be another process's
    (tmp_path / ".a[1].json.4567abcd.part").touch()
    os.utime(tmp_path / ".a[1].json.4567abcd.part", (0, 0))
    write_json(tmp_path / "a[1].json", 1)
    assert sorted(path.name for path in tmp_path.glob(".*.part")) == [".a[1].json.0123abcd.part"]


@pytest.mark.parametrize("how", ["spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_workers_need_not_be_forked(images, how):
    dataset = load_data(str(images))
    train = dataset.split("train")
    loaded = TrainImages(train, labels_of(train), 96, partial(train_transform, Preprocessing()), seed=0)
    loaded.decoded(0)  # what was decoded before goes along
    usual = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(how, force=True)
    try:
        found = list(batches(loaded, [[0, 3], [1, 2]], epoch=0, image_size=64, workers=1))
    finally:
        multiprocessing.set_start_method(usual, force=True)
    for (x, y), (own_x, own_y) in zip(found, batches(loaded, [[0, 3], [1, 2]], 0, 64), strict=True):
        assert torch.equal(x, own_x)
        assert torch.equal(y, own_y)


def test_one_value_for_a_batchnorm_is_one_line(images, tmp_path):
    settings = FINETUNE | {"batch_norm": "train", "lp_ft": False, "image_size": 16, "epochs": 1}
    with pytest.raises(RocLabError, match=r"one value per channel in a batch of 1 at 16 px: use a larger --batch-size"):
        train(config(images, **settings | {"batch_size": 1}), tmp_path / "one")
    train(config(images, **settings | {"batch_size": 1, "batch_norm": "frozen"}), tmp_path / "frozen")
    number = len(load_data(str(images)).split("train"))
    train(config(images, **settings | {"batch_size": number - 1}), tmp_path / "rest")  # the rest of one is left out


def full(*given, **more):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("fault", ["a file in its place", "full", "damaged", "rows of another kind"])
def test_a_cache_that_is_no_use_only_costs_time(images, tmp_path, monkeypatch, fault):
    usual = train(config(images), tmp_path / "usual")
    if fault == "a file in its place":
        (tmp_path / "file").touch()
        monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "file"))
    elif fault == "full":
        monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "full"))
        monkeypatch.setattr(inference, "write_cache", partial(written_to_full_disk, inference.write_cache))
    elif fault == "damaged":
        for path in (tmp_path / "cache").rglob("*.*"):
            path.write_bytes(b"[")
    else:
        cache = FactCache("inspections-3")
        cache._file.unlink()
        cache._rows = {}
        cache.add({image.sha256: {"width": 1} for image in load_data(str(images))._images})
    assert digest(train(config(images), tmp_path / "run")) == digest(usual)


def written_to_full_disk(write, path, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        write(path, data)


def test_a_full_disk_is_named_by_file_and_leaves_the_run_resumable(images, tmp_path, monkeypatch):
    whole = train(config(images, **FINETUNE), tmp_path / "whole")
    fsync, calls = os.fsync, []

    def fills_up(handle):
        calls.append(handle)
        return full() if len(calls) in (9, 10, 11) else fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fills_up)
        with pytest.raises(OSError, match="No space left") as caught:
            train(config(images, **FINETUNE), tmp_path / "run")
    assert str(caught.value.filename).startswith(str(tmp_path / "run"))
    assert not str(caught.value.filename).endswith(".part")
    assert not list((tmp_path / "run").rglob("*.part"))
    run = Run.open(tmp_path / "run")
    resume(run.path)
    assert digest(run) == digest(whole)


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_a_run_of_another_machine_is_read_on_this_one(images, tmp_path, device, caplog):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    run = train(config(images, **FINETUNE), tmp_path / "run")
    write_json(run.path / "config.json", run.config | {"device": device})
    caplog.set_level("INFO", "roclab")
    found = predict(run.path, [images / "sky"])
    assert len(found) == 8
    assert f"trained on {device}, which is not here: using" in caplog.text
    assert evaluate(Run.open(run.path), "test")["n"] > 0
    with pytest.raises(RocLabError, match=f"--device {device}: not usable here"):
        resume(cut(run).path)
    resume(run.path, device="cpu")
    caplog.clear()
    with pytest.raises(RocLabError, match=f"--device {device}: not usable here"):
        resume(cut(run).path, device=device)
    assert "trained on" not in caplog.text


def test_a_run_under_an_odd_name_whose_settings_an_editor_saved(images, tmp_path):
    run = train(config(images), tmp_path / "läufe 100% {x}" / "a'b")
    path = run.path / "config.json"
    path.write_text(path.read_text(encoding="utf-8").replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    assert len(predict(run.path, [images / "sky"])) == 8
    assert evaluate(Run.open(run.path), "test")["n"] > 0


def test_a_comparison_goes_on_where_its_images_are_now(images, tmp_path):
    first = Path(shutil.copytree(images, tmp_path / "first"))
    base, out = config(first, epochs=1), tmp_path / "out"
    compare(base, [MODEL], ["features"], [0], out)
    (run,) = (Run.open(path.parent) for path in out.glob("*/config.json"))
    first.rename(tmp_path / "second")
    moved = config(tmp_path / "second", epochs=1)
    (run.path / "results-test.json").unlink()  # evaluated again, and another seed trained
    assert read_json(out / "comparison.json")
    assert len(next(iter(compare(moved, [MODEL], ["features"], [0, 1], out)["arms"].values()))["runs"]) == 2
    resumed = cut(run)
    compare(moved, [MODEL], ["features"], [0, 1], out)
    assert (resumed.path / "training.json").exists()
    (tmp_path / "second" / "sky" / "00.jpg").write_bytes((tmp_path / "second" / "sky" / "01.jpg").read_bytes() + b"x")
    with pytest.raises(RocLabError, match=r"other images than .*second has now: choose another --out"):
        compare(moved, [MODEL], ["features"], [0, 1], out)


NAMES = ["猫", "犬 $a_$ $b", "🐈", "ქართული", "العربية", "हिन्दी", "\ue000", "x\ty", "plain"]


def test_names_in_any_script_are_drawn_or_escaped(tmp_path):
    figure = new_figure(6, 6)
    axes = figure.subplots()
    confusion(axes, np.eye(len(NAMES), dtype=int), NAMES)
    axes.set_title("模型 \U0001d7d8 plain")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, tmp_path / "a.png")
    shown = [label.get_text() for label in axes.get_xticklabels()]
    fonts = axes.title.get_fontfamily()
    if len(fonts) < 4:  # a machine with hardly a font
        assert shown[0] in ("猫", r"\u732b")
    assert shown[3:5] == NAMES[3:5]  # matplotlib's own font has them
    assert shown[6:] == [r"\ue000", r"x\ty", "plain"]
    assert shown[1].endswith("$a_$ $b")


def test_model_facts_survive_without_the_weights(images, tmp_path):
    """The preprocessing of a resumed run is that of its weights, not of random ones."""
    run = train(config(images, **FINETUNE, full_frame=True), tmp_path / "run")
    before = load_model(run)[0].preprocessing
    resume(cut(run).path)
    assert load_model(run)[0].preprocessing == before
    assert load_tensors(run.checkpoints / "last.safetensors")[1]["epoch"] == 2
    assert not any(image.error for image in inspect_images(list(images.rglob("*.jpg"))))


def test_other_images_are_evaluated_by_the_names_of_the_runs_classes(images, tmp_path, capsys):
    run = train(config(images), tmp_path / "run")
    before = {path: file_sha256(path) for path in run.path.rglob("*") if path.is_file()}
    new = tmp_path / "new"
    shutil.copytree(images / "sky", new / "sky")  # of one class alone, and some were trained on
    app(["vision", "evaluate", str(run.path), "--data", str(new), "--device", "cpu"], standalone_mode=False)
    printed = capsys.readouterr().out
    seen = {row["sha256"] for row in read_json(run.path / "split.json")["images"] if row["split"] != "test"}
    known = sum(file_sha256(path) in seen for path in (new / "sky").iterdir())
    assert 0 < known < 8
    assert f"{known} of these images are among those the run was trained on" in printed
    assert "on 8 images" in printed
    found = evaluate_on(VisionRun.open(run.path), str(new))
    assert found["per_class"]["sky"]["support"] == 8
    assert found["n"] == sum(map(sum, found["confusion"])) == 8
    named = [row["predictions"][0]["class"] for row in predict(run.path, [new], device="cpu")]
    assert found["top1"] == named.count("sky") / 8
    opened = run.path / "test_opened.json"  # the rest are the run's own test images: reading them is noted
    assert f"{8 - known} are the run's own test images" in printed
    assert [row["images"] for row in read_json(opened)] == [8 - known] * 2
    assert before == {path: file_sha256(path) for path in run.path.rglob("*") if path.is_file() and path != opened}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("Sky", {}, r"class 'Sky' \(is it 'sky'\?\), which is none of the run's"),
        ("sea", {}, "class 'sea', which is none of the run's"),
        ("sky", {"device": "cuda:7"}, "--device cuda:7: not usable here"),
    ],
)
def test_images_of_other_classes_and_devices_that_are_not_here_are_refused(images, tmp_path, name, options, said):
    run = train(config(images), tmp_path / "run")
    shutil.copytree(images / "sky", tmp_path / "new" / name)
    with pytest.raises(RocLabError, match=said):
        evaluate_on(VisionRun.open(run.path), str(tmp_path / "new"), **options)


def test_a_split_and_other_data_are_not_asked_for_together(tmp_path):
    with pytest.raises(RocLabError, match="--split is of the run's own images"):
        app(["vision", "evaluate", str(tmp_path), "--split", "test", "--data", "x"], standalone_mode=False)


def test_skip_bad_is_not_ignored_without_other_data(tmp_path):
    with pytest.raises(RocLabError, match="--skip-bad is for --data"):
        app(["vision", "evaluate", str(tmp_path), "--skip-bad"], standalone_mode=False)
