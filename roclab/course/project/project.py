"""`roclab project`: the plan, then step by step to the zip. A killed project goes on with the same command.

project.json holds what was asked and chosen, and of every step that is done the hashes of what it was made from and of
what it made. A step is done if they are still the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.core.files import file_sha256, plain_json, read_json, sweep, write_json
from roclab.core.log import ROOT, log_file
from roclab.core.progress import duration, stage
from roclab.course.project.plan import Asked, Choice, Plan, as_json, make_plan
from roclab.course.project.steps import Step, steps_of
from roclab.vision.config import check_same

logger = logging.getLogger(__name__)
RECORD = "project.json"
TEMPLATE = Path(__file__).parent / "templates" / "plan.txt"
Record = dict[str, Any]


def open_project(asked: Asked, out: Path) -> Record:
    """What the folder's project.json holds; for a new or empty folder a new plan, which is not written yet.

    Raises `RocLabError` if the folder holds something else, or a project with other settings.
    """
    path = out / RECORD
    wanted = json.loads(json.dumps(as_json(asked), default=plain_json))
    if path.exists():
        record = read_json(path)
        own = record.get("asked") if isinstance(record, dict) else None
        if not isinstance(own, dict):
            raise RocLabError(f"{path} is damaged (it holds no project): restore it, or choose another --out")
        check_same(out, own, wanted, wanted.keys() - own.keys(), "choose another --out")
        return record
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RocLabError(f"{out} holds other files and no project: choose a new or empty --out")
    plan = make_plan(asked)
    return {"asked": wanted, "choice": asdict(plan.choice), "seconds": plan.seconds, "notes": plan.notes, "done": {}}


def plan_of(record: Record) -> Plan:
    return Plan(Choice(**record["choice"]), record["seconds"], record["notes"])


def carry_out(steps: Sequence[Step], record: Record, out: Path) -> None:
    """Run what is not done yet, and record each step when it is. `record` is written before the first one."""
    out.mkdir(parents=True, exist_ok=True)
    sweep(out, age=0)  # nobody else writes to it
    write_json(out / RECORD, record)
    kept = log_file(out / "log.txt")
    try:
        for number, step in enumerate(steps, start=1):
            if is_done(step, steps, record, out):
                logger.info(f"step {number} of {len(steps)}, {step.name}: done before")
                continue
            left = sum(record["seconds"][s.name] for s in steps[number - 1 :] if not is_done(s, steps, record, out))
            logger.info(f"step {number} of {len(steps)}, {step.name}: {step.what}; about {duration(left)} left in all")
            begin = time.perf_counter()
            with stage(f"step {number} of {len(steps)}", left - record["seconds"][step.name]):
                step.make()
            took = time.perf_counter() - begin
            record["done"][step.name] = made_from(step, steps, out) | {"outputs": _hashes(step, out), "seconds": took}
            write_json(out / RECORD, record)
    finally:
        ROOT.removeHandler(kept)
        kept.close()


def is_done(step: Step, steps: Sequence[Step], record: Mapping[str, Any], out: Path) -> bool:
    """Its outputs are those that it made, from the settings and the outputs of earlier steps that are there now."""
    done = record["done"].get(step.name)
    if done is None or done["outputs"] != _hashes(step, out):
        return False
    return {name: done[name] for name in ("settings", "inputs")} == made_from(step, steps, out)


def made_from(step: Step, steps: Sequence[Step], out: Path) -> dict[str, Any]:
    """Hashes of a step's settings and of the outputs that it reads."""
    text = json.dumps(step.settings, sort_keys=True, default=plain_json)
    earlier = [other for other in steps if other.name in step.after]
    inputs = {name: digest for other in earlier for name, digest in _hashes(other, out).items()}
    return {"settings": hashlib.sha256(text.encode()).hexdigest(), "inputs": inputs}


def _hashes(step: Step, out: Path) -> dict[str, str | None]:
    return {name: file_sha256(out / name) if (out / name).is_file() else None for name in step.outputs}


def project(asked: Asked, out: Path, show: Callable[[Record, Sequence[Step]], None], only_plan: bool = False) -> Record:
    """Plan the hand-in, `show` the plan, and unless it is `only_plan` make everything in `out` that is not there."""
    record = open_project(asked, out)
    steps = steps_of(asked, plan_of(record).choice, out)
    show(record, steps)
    if not only_plan:
        carry_out(steps, record, out)
    return record
