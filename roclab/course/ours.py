"""RocLM itself, looked into for the report: with a model that is here, since nothing is fetched that nobody named."""

from __future__ import annotations

from typing import Any

from roclab.core.fetch import find_package
from roclab.course.tokenizer_lab.analysis import find_qwen3, open_tokenizer
from roclab.lm.weights.sources import SHORT_NAMES, Package
from roclab.report.roclm import examine

USUAL = "smollm2-135m"


def examine_ours(name: str | None = None) -> dict[str, Any]:
    """What `roclab.report.roclm.examine` finds with the model `name`; without one, with the usual model if its package
    is installed."""
    usual, qwen3 = SHORT_NAMES[USUAL], find_qwen3()
    if name is None and isinstance(usual, Package) and find_package(usual.module):
        name = USUAL
    return examine(name, open_tokenizer(qwen3) if qwen3 else None)
