"""The same on a GPU: what the CPU computes, and batches and resumed runs that agree. Skipped where no GPU is."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from roclab.core.runs import Run
from roclab.core.training.checkpointing import load_tensors
from roclab.lm.engine.scheduler import Engine
from roclab.lm.engine.torch_runner import TorchRunner
from roclab.lm.model import create_roclm_model
from roclab.lm.settings import SamplingParams

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")

SIZES = {
    "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 1024,
}  # fmt: skip


def generate(runner, prompts, **params):
    """Token ids of each request, all submitted at once."""
    engine = Engine(runner)
    requests = [engine.submit(prompt, SamplingParams(max_new_tokens=24, **params)) for prompt in prompts]
    while engine.waiting or engine.running:
        engine.step()
    return [request.ids[len(request.prompt) :] for request in requests]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_roclm_model(SIZES).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def prompts():
    drawn = np.random.default_rng(0)
    return [drawn.integers(0, SIZES["vocab_size"], n).tolist() for n in (5, 400, 17, 1, 90)]


def copy_of(model, device, dtype=torch.float32):
    twin = create_roclm_model(SIZES).eval().requires_grad_(False)
    twin.load_state_dict(model.state_dict())
    return twin.to(device, dtype)


def test_logits_of_the_gpu_are_the_cpus(model, prompts):
    ids = torch.tensor([prompts[1]])
    expected = model(ids)
    for dtype, bound in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        found = copy_of(model, "cuda", dtype)(ids.cuda()).float().cpu()
        assert torch.linalg.norm(found - expected) / torch.linalg.norm(expected) < bound


def test_greedy_ids_are_the_cpus_alone_and_in_a_batch(model, prompts):
    runner = TorchRunner(copy_of(model, "cuda"))
    together = generate(runner, prompts)
    assert together == [generate(runner, [prompt])[0] for prompt in prompts]
    assert together == generate(TorchRunner(model), prompts)
    assert all(len(ids) == 24 for ids in together)


def test_a_seed_gives_the_same_draws_in_any_batch(model, prompts):
    runner = TorchRunner(copy_of(model, "cuda"))
    alone = generate(runner, prompts[:1], temperature=1.0, seed=7)
    assert generate(runner, prompts, temperature=1.0, seed=7)[0] == alone[0]


FINETUNE = {"strategy": "finetune", "epochs": 3, "batch_size": 8, "lr": 3e-3}


@pytest.mark.parametrize("amp", ["off", "auto"])
@pytest.mark.parametrize("settings", [{"refit": False}, FINETUNE], ids=["features", "finetune"])
def test_a_run_on_the_gpu_learns_what_one_on_the_cpu_does(tmp_path, monkeypatch, settings, amp):
    pytest.importorskip("timm")
    from roclab.vision.evaluate.evaluate import evaluate
    from roclab.vision.evaluate.run_reader import VisionRun
    from roclab.vision.train.train import train
    from tests.vision.small import config, make_images

    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    images = make_images(tmp_path / "images")
    runs = [train(config(images, **settings, amp=amp, device=device), tmp_path / device) for device in ("cpu", "cuda")]
    here, there = (VisionRun.open(run.path).predictions("val") for run in runs)
    assert np.allclose(here.probs, there.probs, atol=1e-2 if amp == "off" else 5e-2)
    evaluate(runs[1], device="cuda")
    assert len(runs[0].metrics()) == len(runs[1].metrics())


def test_a_resumed_run_goes_on_from_its_state(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    from roclab.vision.train import finetune
    from roclab.vision.train.train import resume, train
    from tests.vision.small import config, make_images

    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    images = make_images(tmp_path / "images")
    whole = train(config(images, **FINETUNE, device="cuda"), tmp_path / "whole")
    kept = finetune.save_state

    def stop_after_one(*given):
        kept(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "save_state", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        train(config(images, **FINETUNE, device="cuda"), tmp_path / "cut")
    monkeypatch.setattr(finetune, "save_state", kept)
    resume(tmp_path / "cut")
    one, other = (load_tensors(Run.open(tmp_path / n).checkpoints / "last.safetensors")[0] for n in ("whole", "cut"))
    assert whole.metrics()[-1]["step"] == Run.open(tmp_path / "cut").metrics()[-1]["step"]
    for name, value in one.items():  # sums on a GPU come in no fixed order: not the same bits
        assert torch.allclose(value.float(), other[name].float(), rtol=1e-2, atol=1e-3), name


def test_torchrun_with_nccl_trains(tmp_path):
    pytest.importorskip("timm")
    from tests.vision.small import MODEL, make_images

    images = make_images(tmp_path / "images")
    options = ["--data", str(images), "--model", MODEL, "--weights", "none", "--image-size", "64", "--epochs", "1"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command = [*launch, "-m", "roclab", "vision", "train", *options, "--strategy", "finetune", "--batch-size", "8"]
    environment = os.environ | {"ROCLAB_CACHE": str(tmp_path / "cache")}
    command += ["--out", str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Run.open(tmp_path / "run").metrics()
