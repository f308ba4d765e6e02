"""The accuracy figures of docs/vision.md: mean on test over seeds, everything chosen on validation.

    python bench/accuracy.py --out runs/accuracy                 # all lines; the pets need the shared data
    python bench/accuracy.py --out runs/accuracy --only elpv elpv-finetune

Each run is trained by `roclab vision train` with the settings below and evaluated once on test. Finished runs in
`--out` are taken as they are and interrupted ones go on, so it may be stopped at any moment and started again
(fine-tuning elpv takes about an hour on two slow cores). Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

SHARED = Path(os.environ.get("ROCLAB_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
RESNET = {"model": "resnet50", "weights": str(SHARED / "weights" / "resnet50-imagenet1k-pqf.fp16.safetensors")}
LITE0 = {"model": "efficientnet_lite0"}
PETS3, PETS37 = ({"data": "pets", "data_root": str(SHARED / name)} for name in ("pets3", "pets37"))
ELPV = {"data": "elpv"}
FINETUNE = {"strategy": "finetune"}

# Solar cells are so unlike ImageNet's images that the head on frozen features is not worth starting from: all layers
# are trained at one rate, BatchNorm on the cells themselves. A defect may be small and at the edge, so the crops are
# large and evaluation takes the whole cell (docs/log-vision.md).
CELLS = {"image_size": 256, "epochs": 14, "full_frame": True, "lp_ft": False, "batch_norm": "train", "batch_size": 32}
CELLS |= {"optimizer": "adamw", "lr": 1e-3}
CELLS |= {"layer_decay": 1.0, "gradual": 0.0, "label_smoothing": 0.0, "ema": 0.98, "min_area": 0.8}

# name: (seeds, the figure to reach, settings)
LINES: dict[str, tuple[int, float | None, dict[str, Any]]] = {
    "elpv": (5, 0.845, ELPV | LITE0 | {"image_size": 256}),
    "pets3-lite0": (5, 0.93, PETS3 | LITE0),
    "pets37-lite0": (5, 0.785, PETS37 | LITE0),
    "pets3-resnet50": (5, 0.965, PETS3 | RESNET),
    "pets37-resnet50": (5, 0.855, PETS37 | RESNET),
    "elpv-finetune": (3, 0.8842, ELPV | LITE0 | FINETUNE | CELLS),
    "pets3-resnet50-finetune": (3, None, PETS3 | RESNET | FINETUNE | {"epochs": 6, "min_area": 0.6}),
}


def main() -> None:
    from roclab.core.files import read_json
    from roclab.core.runs import Run
    from roclab.core.training.memory import keep_freed_memory
    from roclab.vision.config import TrainConfig
    from roclab.vision.evaluate.evaluate import evaluate
    from roclab.vision.train.train import finish

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=tuple(LINES), default=list(LINES))
    args = parser.parse_args()
    keep_freed_memory()  # as the command line does
    report = {}
    for name in args.only:
        seeds, goal, settings = LINES[name]
        results = []
        for seed in range(seeds):
            config = TrainConfig(**settings, seed=seed)
            path = args.out / f"{name}-seed{seed}"
            if not (path / "training.json").exists():
                finish(path, config)
            done = path / "results-test.json"
            results.append(read_json(done) if done.exists() else evaluate(Run.open(path), "test"))
        top1 = [row["top1"] for row in results]
        low, high = (float(np.mean([row["ci95"]["top1"][side] for row in results])) for side in (0, 1))
        report[name] = {
            "n": results[0]["n"],
            "top1": top1,
            "mean": float(np.mean(top1)),
            "ci95": [low, high],
            "goal": goal,
        }
        print(
            f"{name:16} test n = {results[0]['n']}: top-1 {np.mean(top1):.4f} ± {np.std(top1, ddof=1):.4f} over "
            f"{seeds} seeds, Wilson 95 % [{low:.3f}, {high:.3f}], to reach {goal or 'the frozen figure'}",
            flush=True,
        )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
