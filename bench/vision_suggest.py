"""Does labelling what `roclab vision suggest` names help more than labelling images drawn at random?

    python bench/vision_suggest.py RUN [--seeds 5] [--rounds 4] [--n 74]

RUN is a run with a frozen backbone, made with --no-refit. Its training images are a pool: a random start of --n images
is labelled, then each round --n more by each way to choose; a head is trained on what is labelled (C = 0.01) and
evaluated on the run's validation images. Nothing is read of the test split.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from roclab.vision.data.dataset import labels_of
from roclab.vision.evaluate.embed import Embedding
from roclab.vision.evaluate.run_reader import VisionRun
from roclab.vision.evaluate.suggest import suggest
from roclab.vision.models.classifier import load_model
from roclab.vision.models.inference import dataset_features
from roclab.vision.train.head import fit_head

C = 0.01


def choose(way: str, x: np.ndarray, probs: np.ndarray, count: int, draw: np.random.Generator) -> list[int]:
    """Rows of unlabelled features (N, D) with the head's probabilities (N, C)."""
    if way == "random":
        return draw.choice(len(x), count, replace=False).tolist()
    if way == "margin":
        best = np.sort(probs, axis=1)
        return np.argsort(best[:, -1] - best[:, -2], kind="stable")[:count].tolist()
    paths = [Path(str(i)) for i in range(len(x))]
    classes = [str(i) for i in range(probs.shape[1])]
    return [int(row["path"]) for row in suggest(Embedding(paths, [""] * len(x), x, probs, classes), count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--n", type=int, default=74)
    args = parser.parse_args()
    run = VisionRun.open(args.run)
    dataset = run.dataset()
    model, classes, size = load_model(run, "val")
    found, _ = dataset_features(model, dataset, size)
    (x, y), (x_val, y_val) = ((found[split], labels_of(dataset.split(split))) for split in ("train", "val"))
    print(f"{len(x)} images in the pool, {len(x_val)} validate; top-1 of the head on n labelled images, mean of seeds")
    print("labelled   " + "  ".join(f"{args.n * (r + 1):6d}" for r in range(args.rounds + 1)))
    results = {}
    for way in ("random", "margin", "suggest"):
        results[way] = []
        for seed in range(args.seeds):
            draw = np.random.default_rng(seed)
            labelled, scores = draw.choice(len(x), args.n, replace=False).tolist(), []
            for number in range(args.rounds + 1):
                head = fit_head(x[labelled], y[labelled], len(classes), C)
                scores.append((head.probs(x_val).argmax(1) == y_val).mean())
                if number < args.rounds:
                    left = np.setdiff1d(np.arange(len(x)), labelled)
                    labelled += left[choose(way, x[left], head.probs(x[left]), args.n, draw)].tolist()
            results[way].append(scores)
        table = np.array(results[way])
        print(f"{way:10s} " + "  ".join(f"{value:.4f}" for value in table.mean(0)))
        print(f"{'':10s} " + "  ".join(f"±{value:.3f}" for value in table.std(0, ddof=1)), flush=True)


if __name__ == "__main__":
    main()
