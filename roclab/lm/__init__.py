"""RocLM: a decoder-only transformer from scratch, its checkpoints, tokenizers, generation and chat.

    from roclab import lm

    runner, tokenizer = lm.load("smollm2-135m")
    for event in lm.stream(runner, tokenizer, [tokenizer.encode("The sea")], lm.SamplingParams(max_new_tokens=20)):
        print(event.text, end="")

The names below are imported when they are first used, because torch takes seconds to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roclab.lm.conversation import Conversation
    from roclab.lm.generate import complete, stream
    from roclab.lm.loading import load
    from roclab.lm.settings import SamplingParams
    from roclab.lm.weights.checkpoint import open_checkpoint

__all__ = ["Conversation", "SamplingParams", "complete", "load", "open_checkpoint", "stream"]

_HOMES = {
    "Conversation": "roclab.lm.conversation",
    "SamplingParams": "roclab.lm.settings",
    "complete": "roclab.lm.generate",
    "load": "roclab.lm.loading",
    "open_checkpoint": "roclab.lm.weights.checkpoint",
    "stream": "roclab.lm.generate",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
