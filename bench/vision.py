"""Our training against the usual way and against timm's, on the same images, split, batch and epochs.

    python bench/vision.py                     # both regimes, all contenders in turn; ends in one JSON line
    python bench/vision.py --regime frozen

Each contender is a process of its own (so that its peak memory is its own), told the same thing: images, epochs, batch,
image size. The usual way is what tutorials do: NCHW, the backbone recomputed in every epoch, one learning rate (SGD,
momentum 0.9, cosine; 1e-2 for a frozen backbone, 1e-3 for all parameters, the handout's rates). timm's is its loader,
transforms, optimiser and scheduler as a user of the package would put them together. Time is training time: reading,
augmenting, forward, backward, and for ours also the extraction of features and the head that fine-tuning starts from;
evaluation and saving are not counted for anyone. The peers' heads start at zero like ours, which is kinder than timm's
own draw (see `build_model`).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, for every contender


def shared_data() -> Path:
    return Path(os.environ.get("ROCLAB_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def dataset(args):
    from roclab.vision.data.dataset import load_data

    return load_data(args.data, args.data_root, seed=args.seed, val_fraction=args.val_fraction)


def ours(args, regime: str) -> dict:
    from roclab.core.files import read_json
    from roclab.core.training.memory import keep_freed_memory
    from roclab.vision.config import TrainConfig
    from roclab.vision.train.train import train

    keep_freed_memory()  # as the command line does
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ROCLAB_CACHE"] = folder + "/cache"  # nothing is taken over from earlier runs
        config = TrainConfig(
            data=args.data,
            data_root=args.data_root,
            val_fraction=args.val_fraction,
            seed=args.seed,
            model=args.model,
            strategy="features" if regime == "frozen" else "finetune",
            epochs=args.epochs,  # frozen, ours has none: a solver runs until it converges
            image_size=args.image_size,
            batch_size=args.batch_size,
        )
        run = train(config, folder + "/run")
        timing = read_json(run.path / "training.json")
        if regime == "frozen":
            found = read_json(run.path / "results-val.json")
            seconds = timing["feature_seconds"] + timing["head_seconds"]
            return {"seconds": seconds, "top1": found["top1"], "images_per_second": timing["images_per_second"]}
        curve, seconds = [], 0.0
        for row in run.metrics():  # epoch 0 is the trained head
            seconds += row.get("train_seconds", row.get("head_seconds", 0.0))
            curve.append([seconds, row["val_top1"]])
        # images a second where every layer learns at the peers' resolution
        plain = replace(config, epochs=1, lp_ft=False, progressive=False, gradual=0.0)
        full = read_json(train(plain, folder + "/plain").path / "training.json")
        peak = max(found["peak_memory_mb"] for found in (timing, full))  # the peers train once in their process
        return {
            "seconds": seconds,
            "curve": curve,
            "top1": max(top1 for _, top1 in curve),
            "images_per_second": full["images_per_second"],
            "peak_memory_mb": peak,
        }


def usual(args, regime: str) -> dict:
    """What a tutorial does with torch and torchvision."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.transforms import v2

    model, preprocessing, images = start(args)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(args.image_size, scale=(0.35, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
    loader = DataLoader(Files(images.split("train"), transform), args.batch_size, shuffle=True, drop_last=True)
    frozen = regime == "frozen"
    epochs = args.frozen_epochs if frozen else args.epochs
    if frozen:
        model.module.requires_grad_(False)
        model.head.requires_grad_(True)
    learning = [p for p in model.module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-2 if frozen else 1e-3, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    return loop(args, model, images, loader, optimizer, lambda epoch: scheduler.step(), epochs, frozen)


def timms(args, regime: str) -> dict:
    """timm's loader, transforms, optimiser and scheduler, put together as its user would."""
    from timm.data import create_transform
    from timm.data.loader import create_loader
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    model, preprocessing, images = start(args)
    transform = create_transform(
        args.image_size,
        is_training=True,
        mean=preprocessing.mean,
        std=preprocessing.std,
        scale=(0.35, 1.0),
        color_jitter=0.0,
    )
    size = (3, args.image_size, args.image_size)
    loader = create_loader(
        Files(images.split("train"), None),
        size,
        args.batch_size,
        is_training=True,
        use_prefetcher=False,
        mean=preprocessing.mean,
        std=preprocessing.std,
        num_workers=0,
        persistent_workers=False,
        device="cpu",
        pin_memory=False,
    )
    loader.dataset.transform = transform
    frozen = regime == "frozen"
    epochs = args.frozen_epochs if frozen else args.epochs
    if frozen:
        model.module.requires_grad_(False)
        model.head.requires_grad_(True)
    learning = model.head if frozen else model.module
    optimizer = create_optimizer_v2(learning, opt="adamw", lr=1e-2 if frozen else 1e-3, weight_decay=0.05)
    scheduler = CosineLRScheduler(optimizer, t_initial=epochs, warmup_t=0 if frozen else 1, warmup_lr_init=1e-5)
    return loop(args, model, images, loader, optimizer, scheduler.step, epochs, frozen)


class Files:
    """A map-style dataset of images, as one would write it."""

    def __init__(self, images, transform):
        self.images, self.transform = images, transform

    def __getitem__(self, i):
        from PIL import Image

        return self.transform(Image.open(self.images[i].path).convert("RGB")), self.images[i].label

    def __len__(self):
        return len(self.images)


def start(args):
    import torch

    from roclab.vision.models.classifier import build_model

    torch.manual_seed(args.seed)
    images = dataset(args)
    model = build_model(args.model, "default", len(images.classes))
    return model, model.preprocessing, images


def loop(args, model, images, loader, optimizer, step_scheduler, epochs: int, frozen: bool) -> dict:
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    from roclab.vision.models.inference import predict_probs

    val = images.split("val")
    labels = np.array([image.label for image in val])
    seconds, seen, curve = 0.0, 0, []
    for epoch in range(epochs):
        model.module.train(not frozen)
        begin = time.perf_counter()
        for images, targets in loader:
            loss = cross_entropy(model.module(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(images)
        step_scheduler(epoch + 1)
        seconds += time.perf_counter() - begin
        if not frozen or epoch + 1 == epochs:
            probs = predict_probs(model, [image.path for image in val], args.image_size, "torch")
            curve.append([seconds, float((probs.argmax(1) == labels).mean())])
            print(f"epoch {epoch + 1}: {curve[-1]}", file=sys.stderr, flush=True)
            torch.set_grad_enabled(True)
    return {
        "seconds": seconds,
        "curve": curve,
        "top1": max(v for _, v in curve),
        "images_per_second": seen / seconds,
    }


CONTENDERS = {"ours": ours, "usual": usual, "timm": timms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pets3 = shared_data() / "pets3"
    parser.add_argument("--data", default="pets" if pets3.is_dir() else "elpv")
    parser.add_argument("--data-root", default=str(pets3) if pets3.is_dir() else None)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--val-fraction", type=float, default=0.4)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--frozen-epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--regime", choices=("frozen", "finetune", "both"), default="both")
    parser.add_argument("--contender", choices=tuple(CONTENDERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        found = CONTENDERS[args.contender](args, args.regime)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"peak_memory_mb": peak} | found))
        return

    report: dict = {"data": args.data, "model": args.model, "image_size": args.image_size, "batch": args.batch_size}
    for regime in ("frozen", "finetune") if args.regime == "both" else (args.regime,):
        found = {}
        for name in CONTENDERS:
            command = [sys.executable, __file__, *sys.argv[1:], "--regime", regime, "--contender", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[name] = json.loads(done.stdout.strip().splitlines()[-1])
            row = found[name]
            print(
                f"{regime:9} {name:6} {row['seconds']:7.1f} s  {row['images_per_second']:6.1f} images/s  "
                f"val top-1 {row['top1']:.4f}  peak {row['peak_memory_mb']:.0f} MB",
                flush=True,
            )
        for peer in ("usual", "timm"):
            mine, theirs = found["ours"], found[peer]
            found[f"against_{peer}"] = ratio = {
                "accuracy_difference": mine["top1"] - theirs["top1"],
                "images_per_second": mine["images_per_second"] / theirs["images_per_second"],
                "memory": mine["peak_memory_mb"] / theirs["peak_memory_mb"],
            }
            if regime == "frozen":
                ratio["speedup"] = theirs["seconds"] / mine["seconds"]
            else:
                best = theirs["top1"]
                needed = next((s for s, top1 in theirs["curve"] if top1 >= best))
                reached = next((s for s, top1 in mine["curve"] if top1 >= best), None)
                ratio["time_to_its_best"] = reached and reached / needed
                ratio["time_to_its_best_of_its_whole"] = reached and reached / theirs["seconds"]
            print(f"{regime:9} ours against {peer}: " + ", ".join(f"{k} {v}" for k, v in ratio.items()), flush=True)
        report[regime] = found
    print(json.dumps(report))


if __name__ == "__main__":
    main()
