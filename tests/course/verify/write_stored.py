"""Computes roclab/course/verify/stored.safetensors anew: `python -m tests.course.verify.write_stored`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from safetensors.numpy import save

from roclab.core.files import atomic_write
from roclab.course.verify.cases import CASES, STORED, Case
from roclab.course.verify.reference import Reference


def main() -> None:
    case = replace(CASES["stored"], adjust=Case.adjust)  # the weights that numpy draws
    logits = Reference(case.config, case.weights).logits(case.ids)
    atomic_write(STORED, save({**case.weights, "ids": case.ids.astype(np.int64), "logits": logits}))


if __name__ == "__main__":
    main()
