"""The steps of a whole hand-in, as data: each names what it makes, from what, and the function that makes it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from roclab.core.files import atomic_write, file_sha256, read_json, write_json
from roclab.course import roc_demo
from roclab.course.handin.pack import handin, requirements_page
from roclab.course.ours import examine_ours
from roclab.course.project.plan import Asked, Choice, run_config
from roclab.course.study.ask import open_and_ask
from roclab.course.study.settings import Study
from roclab.course.tokenizer_lab.lab import write_lab
from roclab.course.verify.checker import OURS, verify_ours
from roclab.lm.loading import load
from roclab.lm.settings import LoadOptions, SamplingParams
from roclab.report.build import report
from roclab.report.error_page import write_page
from roclab.report.kit import render
from roclab.report.runs import read_runs
from roclab.vision.compare import compare, evaluate_once, split_to_compare
from roclab.vision.config import STRATEGIES, TrainConfig
from roclab.vision.error_analysis.facts import analyse
from roclab.vision.evaluate.run_reader import VisionRun
from roclab.vision.train.train import finish

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """`outputs` are files in the project's folder, the last one written last. They are made from `settings` and from
    the outputs of the steps `after` which it comes."""

    name: str
    what: str
    outputs: tuple[str, ...]
    make: Callable[[], Any]
    settings: dict[str, Any]
    after: tuple[str, ...] = ()


def steps_of(asked: Asked, choice: Choice, out: Path) -> list[Step]:
    """All steps of the project in the folder `out`, in their order; nothing is run."""
    base, me = asked.base, asked.me
    shared = replace(base, image_size=choice.image_size, epochs=choice.epochs)
    runs, networks = out / "runs", choice.networks
    words = f"{len(networks) * 2} runs: {', '.join(networks)}, frozen and fine-tuned; test evaluation"
    size = {"image_size": choice.image_size, "epochs": choice.epochs}
    said, talks = Study(quick=choice.quick), {"model": asked.model}
    few = {"model": choice.curve_model, "per_class": choice.per_class} | size
    curve = ("curve",) if choice.per_class else ()
    found = [
        Step("comparison", words, ("runs/comparison.json",), lambda: _compare(shared, networks, runs),
             {"networks": networks, "data": base.data, "seed": base.seed} | size),
        Step("curve", f"few-images curve: {', '.join(map(str, choice.per_class))} images a class, {choice.curve_model}",
             ("curve/curve.json",), lambda: _curve(base, choice, out / "curve"), few, ("comparison",)),
        Step("errors", "error analysis with heat maps", ("errors/errors.json",),
             lambda: write_page(analyse(_finished(runs)), out / "errors"), {}, ("comparison",)),
        Step("verify", "RocLM's implementation, checked and looked into", ("verify.json", "roclm.json"),
             lambda: _look_into_roclm(asked.model, out), talks | {"model.py": file_sha256(OURS)}),
        Step("demo", f"the three demos with {asked.model}", ("demo.txt",),
             lambda: _demo(asked.model, out / "demo.txt"), talks),
        Step("study", f"{len(said.asked)} questions to {asked.model}", ("study/study.json",),
             lambda: open_and_ask(asked.model, LoadOptions(), said, out / "study"), talks | {"quick": choice.quick}),
        Step("lab", f"tokenizer lab for {me.student_id}", ("lab/lab.json",),
             lambda: write_lab(str(me.student_id), out / "lab", asked.qwen3),
             {"student_id": me.student_id, "qwen3": asked.qwen3}),
        Step("report", "the write-up: PDF, HTML, LaTeX", ("report/facts.json",), lambda: _report(asked, choice, out),
             asdict(me), ("comparison", *curve, "errors", "verify", "study", "lab")),
        Step("handin", "the zip, unzipped and run", ("handin.zip", "requirements.md"), lambda: _handin(asked, out),
             asdict(me), ("report", "demo")),
    ]  # fmt: skip
    return [step for step in found if step.name != "curve" or curve]


def _compare(base: TrainConfig, networks: dict[str, str], out: Path) -> None:
    compare(base, list(networks), STRATEGIES, [base.seed], out, networks)


def _curve(base: TrainConfig, choice: Choice, out: Path) -> None:
    """A run for each number of images and strategy, fine-tuned from the trained head whatever the comparison does: a
    few images are not enough for a head of zeros."""
    base = replace(base, lp_ft=TrainConfig().lp_ft)  # the network's own default
    names = []
    for number in choice.per_class:
        for strategy in STRATEGIES:
            config = replace(run_config(base, choice, choice.curve_model, strategy), per_class=number)
            path = out / f"{choice.curve_model}-{strategy}-{number}"
            if not (path / "training.json").exists():
                finish(path, config)
            run = VisionRun.open(path)
            evaluate_once(run, split_to_compare(run), config)
            names.append(path.name)
    write_json(out / "curve.json", {"runs": names})


def _finished(runs: Path) -> list[VisionRun]:
    return [run for run in read_runs([runs]) if run.finished]


def _look_into_roclm(model: str, out: Path) -> None:
    write_json(out / "verify.json", verify_ours())
    write_json(out / "roclm.json", examine_ours(model))


def _demo(model: str, file: Path) -> None:
    runner, tokenizer = load(model, **vars(LoadOptions().for_temperature(0)))
    roc_demo.write_transcript(file, Path(model).name, runner, tokenizer, SamplingParams(max_new_tokens=120))


def _report(asked: Asked, choice: Choice, out: Path) -> None:
    tools = {name: out / name for name in ("errors", "lab", "study", *(("curve",) if choice.per_class else ()))}
    roclm = {name: read_json(out / f"{name}.json") for name in ("verify", "roclm")}
    report([out / "runs"], out / "report", asked.me, **tools, **roclm)


def _handin(asked: Asked, out: Path) -> None:
    done = handin(
        str(asked.me.student_id), str(asked.me.author), [out / "runs"], out / "report", out / "lab",
        out / "handin.zip", out / "study", out / "demo.txt", incomplete=True,
    )  # fmt: skip
    for item in done["missing"]:
        logger.warning("missing: %s (%s)", item["what"], item["remedy"])
    logger.info(render("handin.txt", done=done).rstrip("\n"))
    atomic_write(out / "requirements.md", requirements_page(done["requirements"]))
