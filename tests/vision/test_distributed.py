"""Two processes make the run that one makes, up to the order of floating-point sums."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from roclab.core.files import write_json
from roclab.core.runs import Run
from roclab.core.training.checkpointing import load_tensors
from roclab.core.training.distributed import World
from roclab.vision.evaluate.run_reader import VisionRun
from roclab.vision.train.train import train
from tests.vision.small import MODEL, config, make_images

SETTINGS = {
    "strategy": "finetune",
    "epochs": 2,
    "batch_size": 8,
    "mixup": 0.4,
    "label_smoothing": 0.1,
    "accumulate": 2,
    "gradual": 0.5,
}


def test_shares_cover_a_batch_once_and_keep_neighbours_together():
    batch = list(range(8))
    shares = [World(rank, 2).share(batch) for rank in range(2)]
    assert [*shares[0], *shares[1]] == batch
    assert all(len(share) % 2 == 0 for share in shares)
    assert [list(World(rank, 3).share(batch)) for rank in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]


@pytest.mark.parametrize("batch_norm", ["train", pytest.param("frozen", marks=pytest.mark.slow)])
def test_two_gloo_processes_train_what_one_does(tmp_path, monkeypatch, batch_norm):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    images = make_images(tmp_path / "images")
    settings = SETTINGS | {"batch_norm": batch_norm}
    alone = train(config(images, **settings), tmp_path / "alone")
    options = ["--data", str(images), "--model", MODEL, "--weights", "none", "--image-size", "64", "--device", "cpu"]
    options += ["--lp-ft", "--layer-decay", "0.75"]
    for name, value in settings.items():
        options += [f"--{name.replace('_', '-')}", str(value)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "roclab", "vision", "train", *options, "--out", str(tmp_path / "two")]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    two = Run.open(tmp_path / "two")
    for mine, theirs in zip(alone.metrics(), two.metrics(), strict=True):
        assert theirs["train_loss"] == pytest.approx(mine["train_loss"], abs=1e-3)
        assert theirs["val_loss"] == pytest.approx(mine["val_loss"], abs=1e-3)
    one, other = (VisionRun.open(run.path).predictions("val") for run in (alone, two))
    assert np.allclose(one.probs, other.probs, atol=2e-3)
    one_state, two_state = (load_tensors(r.checkpoints / "last.safetensors")[0] for r in (alone, two))
    for name in (n for n in one_state if "running" in n):
        assert torch.allclose(one_state[name], two_state[name], rtol=1e-2, atol=1e-3), name
    # and it did learn: the tolerance is not met by standing still
    first = alone.metrics()[0]
    assert abs(first["train_loss"] - alone.metrics()[-1]["train_loss"]) > 0.005


@pytest.mark.skipif(sys.platform != "linux", reason="names of threads are read from /proc")
def test_parting_leaves_no_thread_behind(tmp_path):
    """A thread of the process group that outlives it runs into the interpreter's end, which then may abort."""
    script = tmp_path / "part.py"
    script.write_text(
        """
from pathlib import Path
import torch
from roclab.core.training.distributed import join, leave, synced_batch_norm, wrap

world = join()
module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
synced_batch_norm(module)
wrap(module, torch.device("cpu"))(torch.randn(5, 3)).sum().backward()
world.gather(1)
leave()
threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], threads
"""
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(launch, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_world_of_one_is_no_ceremony():
    assert World().gather(5) == [5]
    assert World().from_main("x") == "x"
    calls: list[int] = []
    assert World().main_first(lambda: calls.append(1) or "done") == "done"
    assert calls == [1]


@pytest.mark.slow
def test_training_and_prediction_over_a_local_ray(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from roclab.vision.compare import compare
    from roclab.vision.evaluate.evaluate import predict

    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    images = make_images(tmp_path / "images", each=8)
    base = config(images, epochs=2)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        over_ray = compare(base, [MODEL], ["features", "finetune"], [0], tmp_path / "ray", engine="ray")
        here = compare(base, [MODEL], ["features", "finetune"], [0], tmp_path / "here")
        for arm, found in here["arms"].items():
            assert over_ray["arms"][arm]["top1"] == found["top1"]
        run = Run.open(tmp_path / "here" / f"{MODEL}-finetune-seed0")
        spread, local = predict(run.path, [images], top=3, engine="ray"), predict(run.path, [images], top=3)
        assert [row["path"] for row in spread] == [row["path"] for row in local]
        for one, other in zip(spread, local, strict=True):
            one_p, other_p = ({p["class"]: p["probability"] for p in row["predictions"]} for row in (one, other))
            assert one_p == pytest.approx(other_p, abs=1e-5)
        # a user's mistake in a task arrives as one clear line
        write_json(tmp_path / "ray" / f"{MODEL}-finetune-seed0" / "split.json", {"damaged": True})
        (tmp_path / "ray" / f"{MODEL}-finetune-seed0" / "training.json").unlink()
        with pytest.raises(Exception, match="damaged"):
            compare(base, [MODEL], ["finetune"], [0], tmp_path / "ray", engine="ray")
    finally:
        ray.shutdown()
