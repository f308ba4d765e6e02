"""The assignment's requirements, sentence by sentence: where each is met in the hand-in, or what it lacks.

requirements.json quotes the sentences; what each `needs` is checked against what is really packed:

    file:PATTERN           a file of the zip
    run:MODEL[:STRATEGY]   finished runs, of both strategies if none is named
    pretrained:MODEL       its runs began from pretrained weights
    classes:N              the images have so many classes
    check:COMPONENT        all checks of this part of RocLM passed
    report:PART            a part of the report
    item:BEGINNING         a point of the checklist
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from roclab.course.handin.checklist import Item
from roclab.vision.config import STRATEGIES
from roclab.vision.evaluate.run_reader import MODELS, VisionRun, label_of


@dataclass(frozen=True)
class Requirement:
    """A sentence of a section of the assignment, where it is met, and what it lacks (nothing: it is met)."""

    section: str
    sentence: str
    where: list[str]
    lacks: list[str]


def requirements(
    files: Collection[str], runs: Sequence[VisionRun], items: Sequence[Item], facts: Mapping[str, Any]
) -> list[Requirement]:
    """All of them, against the names of the packed `files`, the packed runs, the checklist and the report's facts."""
    rows = json.loads(Path(__file__).with_name("requirements.json").read_text("utf-8"))
    lack = _Lacks(files, [run for run in runs if run.finished], items, facts)
    return [
        Requirement(row["section"], row["sentence"], row["where"], list(filter(None, map(lack, row["needs"]))))
        for row in rows
    ]


class _Lacks:
    """A need -> what is lacking, in words; None where nothing is."""

    def __init__(
        self, files: Collection[str], runs: Sequence[VisionRun], items: Sequence[Item], facts: Mapping[str, Any]
    ):
        self.files, self.runs, self.items, self.facts = files, runs, items, facts

    def __call__(self, need: str) -> str | None:
        kind, _, what = need.partition(":")
        look: Callable[[str], str | None] = getattr(self, kind)
        return look(what)

    def file(self, pattern: str) -> str | None:
        return None if any(fnmatch(name, pattern) for name in self.files) else f"no {pattern}"

    def run(self, what: str) -> str | None:
        model, _, strategy = what.partition(":")
        there = {(run.config["model"], run.config["strategy"]) for run in self.runs}
        wanted = [(model, name) for name in ([strategy] if strategy else STRATEGIES)]
        missing = [label_of(*pair) for pair in wanted if pair not in there]
        return f"no finished run of {' and of '.join(missing)}" if missing else None

    def pretrained(self, model: str) -> str | None:
        weights = {run.config.get("weights", "default") for run in self.runs if run.config["model"] == model}
        return f"{MODELS[model]} began from random weights" if weights == {"none"} else None

    def classes(self, number: str) -> str | None:
        found = {len(run.manifest["classes"]) for run in self.runs}
        other = ", ".join(map(str, sorted(found)))
        return None if found <= {int(number)} else f"the images have {other} classes, not {number}"

    def check(self, component: str) -> str | None:
        verified = self.facts.get("verify") or {"checks": []}
        passed = [check["passed"] for check in verified["checks"] if check["component"] == component]
        if not passed:
            return f"{component} was not checked (roclab report without --no-verify)"
        failed = len(passed) - sum(passed)
        return f"{failed} of {len(passed)} checks of {component} failed" if failed else None

    def report(self, part: str) -> str | None:
        return None if self.facts.get(part) else f"the report has no part from --{part}"

    def item(self, beginning: str) -> str | None:
        found = [item for item in self.items if item.what.startswith(beginning)]
        # the remedy stays in the console: it names folders of the author's machine
        return next((f"missing: {item.what}" for item in found if not item.found), None) if found else beginning
