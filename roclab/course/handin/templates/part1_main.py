"""Part 1: transfer learning for images, from the package beside this folder.

python part1/main.py                                 # the experiment: experiment.json, into part1/results/again
python part1/main.py --data-root data --epochs 3     # with other options
python part1/main.py train --data pets --model resnet50 --strategy finetune --out part1/results/new
python part1/main.py --help
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from roclab.cli import main  # noqa: E402  (from beside this folder)


def experiment() -> list[str]:
    """The options of experiment.json; a file of weights that lies in this folder is named by its path."""
    words = json.loads((HERE / "experiment.json").read_text(encoding="utf-8"))
    place = words.index("--weights") + 1
    pairs = [part.split("=", 1) for part in words[place].split(",")]
    found = [(model, HERE / name if (HERE / name).is_file() else name) for model, name in pairs]
    words[place] = ",".join(f"{model}={name}" for model, name in found)
    return ["compare", *words, "--out", str(HERE / "results" / "again")]


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.argv[1:] = ["vision", *given] if given and not given[0].startswith("-") else ["vision", *experiment(), *given]
    main()
