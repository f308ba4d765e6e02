"""The frozen-backbone figures of docs/vision.md: mean test accuracy over five seeds, everything chosen on validation.

    python bench/frozen.py --out runs/frozen            # all five lines; needs the shared data for the pets
    python bench/frozen.py --out runs/frozen --only elpv

Each line is five runs of `roclab vision train --strategy features`, each judged once on test. Finished runs in
`--out` are taken as they are. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SHARED = Path(os.environ.get("ROCLAB_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
RESNET = str(SHARED / "weights" / "resnet50-imagenet1k-pqf.fp16.safetensors")
LINES = {  # name: data, root, model, weights, the figure to reach
    "elpv": ("elpv", None, "efficientnet_lite0", "default", 0.845),
    "pets3-lite0": ("pets", "pets3", "efficientnet_lite0", "default", 0.93),
    "pets37-lite0": ("pets", "pets37", "efficientnet_lite0", "default", 0.785),
    "pets3-resnet50": ("pets", "pets3", "resnet50", RESNET, 0.965),
    "pets37-resnet50": ("pets", "pets37", "resnet50", RESNET, 0.855),
}


def main() -> None:
    from roclab.runs import Run, read_json
    from roclab.vision.compare import finish
    from roclab.vision.config import TrainConfig
    from roclab.vision.evaluate import evaluate

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=tuple(LINES), default=list(LINES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--views", type=int, default=1)
    args = parser.parse_args()
    report = {}
    for name in args.only:
        data, root, model, weights, goal = LINES[name]
        results = []
        for seed in range(args.seeds):
            config = TrainConfig(
                data=data,
                data_root=str(SHARED / root) if root else None,
                model=model,
                weights=weights,
                seed=seed,
                views=args.views,
            )
            path = args.out / f"{name}-views{args.views}-seed{seed}"
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
            f"{args.seeds} seeds, Wilson 95 % [{low:.3f}, {high:.3f}], to reach {goal}",
            flush=True,
        )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
