"""Features and predictions by torch and by OpenVINO, and by another checkout: images/s, reading and decoding included.

    python bench/vision_inference.py                                   # EfficientNet-Lite0; ends in one JSON line
    python bench/vision_inference.py --model resnet50 --weights FILE --images 200
    mkdir ../before; git archive COMMIT | tar -x -C ../before; python bench/vision_inference.py --before ../before

The contenders take turns, each time in a process of its own with an empty cache, so that what is timed is what a user
waits for, OpenVINO's conversion of the network included; loading the weights is not counted. Printed are medians of
images a second and (`_cpu`) a CPU second, which other programs disturb less, and their ratios to the first contender's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parents[1]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does


def images_in(folder: Path, number: int) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return found[:: max(1, len(found) // number)][:number]


def work(args: argparse.Namespace) -> dict[str, float]:
    """What one contender takes, in this process."""
    from roclab.core.files import file_sha256
    from roclab.core.training.memory import keep_freed_memory
    from roclab.vision.data.dataset import LabelledImage
    from roclab.vision.models.classifier import build_model
    from roclab.vision.models.inference import cached_features, predict_probs

    keep_freed_memory()  # as the command line does
    paths = images_in(args.data, args.images)
    images = [
        LabelledImage(path, 0, "train", file_sha256(path)) for path in paths
    ]  # the files are in memory for everyone
    model = build_model(args.model, args.weights, 37)
    model.to(next(model.module.parameters()).device)
    chosen = {} if args.worker == "before" else {"backend": args.worker}
    found = {}
    for name, compute in (
        ("features", lambda: cached_features(model, images, args.image_size, **chosen)),
        ("predict", lambda: predict_probs(model, paths, args.image_size, **chosen)),
    ):
        begin, busy = time.perf_counter(), time.process_time()
        compute()
        found[name] = len(paths) / (time.perf_counter() - begin)
        found[f"{name}_cpu"] = len(paths) / (time.process_time() - busy)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("ROCLAB_SHARED_DATA") or HERE.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=shared / "pets37", help="a folder of images")
    parser.add_argument("--images", type=int, default=370)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="a checkout from before there was a choice")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args)))
        return

    contenders = [*(["before"] if args.before else []), "torch", "openvino"]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name in contenders:
            with tempfile.TemporaryDirectory() as cache:
                tree = args.before.resolve() if name == "before" else HERE
                others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
                paths = os.pathsep.join([str(tree), *others])
                command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
                environment = os.environ | {"ROCLAB_CACHE": cache, "PYTHONPATH": paths}
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            found[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(name, found[name][-1], flush=True)
    report: dict = {"model": args.model, "images": args.images, "image_size": args.image_size, "rounds": args.rounds}
    for what in found[contenders[0]][0]:
        speeds = {name: median(row[what] for row in rows) for name, rows in found.items()}
        report[what] = {name: round(speed, 1) for name, speed in speeds.items()}
        report[f"{what}_ratio"] = {name: round(speed / speeds[contenders[0]], 2) for name, speed in speeds.items()}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
