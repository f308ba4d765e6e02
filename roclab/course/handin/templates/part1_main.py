"""Part 1: transfer learning for images, from the package beside this folder.

python part1/main.py train --data pets --data-root data --model resnet50 --strategy finetune --out part1/results/new
python part1/main.py --help
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from roclab.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["vision"]
    main()
