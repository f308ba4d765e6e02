"""The written analysis (sentences.txt): every sentence states one computed fact, names it, and claims no more than the
evidence holds.

A sentence claims something (one is better, harder, overconfident …) only if its 95 % interval leaves out "no
difference" and its p-value, after Holm's correction over the questions of its kind, is below 0.05. Otherwise it says
that the images do not show it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from roclab.core.sentences import Sentence, about, pointer, sentences_from, strength
from roclab.vision.evaluate.pairs import verdicts

TEXTS = Path(__file__).with_suffix(".txt")
FEW = 5  # claims of one kind that are written out
PAIRS = 6


def sentences(facts: dict[str, Any]) -> list[Sentence]:
    """All sentences; the `key` of each leads to its fact, `topic` is the heading it belongs under."""
    shown = list(zip(facts["pairs"], verdicts(facts["pairs"], facts["split"]), strict=True))
    if len(shown) > PAIRS:  # of many pairs, those that are shown to differ
        shown = sorted((row for row in shown if row[1].claims), key=lambda row: row[0]["p"])
    topics = [""]

    def make(text: str, key: str | Sentence, kind: str = "measured", **more: Any) -> Sentence:
        made = about(facts, key, text, kind, **more) if isinstance(key, str) else key
        return replace(made, topic=topics[-1])

    helpers = {"topic": topics.append, "pointer": pointer, "strength": strength, "enumerate": enumerate}
    return sentences_from(TEXTS, make, facts=facts, shown=shown, few=FEW, most=PAIRS, **helpers)
