"""Vision: what two small runs come to, what they leave in their folders, what the commands print about them, what a
hand-in of them holds, and that a run folder made before still opens."""

from __future__ import annotations

import csv
import json
import re
import shutil
import zipfile
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.golden import small
from tests.golden.common import (
    HERE,
    Answer,
    assert_near,
    assert_same,
    bits_of,
    files,
    machine_key,
    plain_names,
    read_record,
    roclab,
    sha256,
    structure,
)

for needed in ("timm", "pypandoc", "typst"):  # not imported here: that takes seconds
    if find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed", allow_module_level=True)

MODEL = ("--model", "test_resnet", "--weights", "none", "--image-size", 64, "--device", "cpu")
RUNS = {
    "features": (*MODEL, "--strategy", "features"),
    # Without the trained head, so that an epoch and not its beginning is the best one; with warm-up, an average of the
    # weights, layer-wise rates and a smaller picture in the first epoch.
    "finetune": (*MODEL, "--strategy", "finetune", "--epochs", 3, "--no-lp-ft", "--layer-decay", 0.75, "--lr", 0.01,
                 "--batch-norm", "train", "--ema", 0.5, "--batch-size", 8),
}  # fmt: skip
# Two finished runs as these flags left them. Their folders were made short: photos/ is where the photos were, and of
# best.safetensors (1.5 MB) only names, types and shapes are kept, for `small.checkpoint` to fill.
OLD_RUN = HERE / "old-run"
MEASURED = re.compile(r"seconds|per_second|memory|^time$")  # by a clock


def machine() -> str:
    return machine_key("torchvision", "timm")


class World:
    """A folder with photos and two runs over them, and what every command says of them. The commands run inside it, in
    one process, so that paths are short."""

    def __init__(self, folder: Path):
        self.folder = folder
        small.draw_photos(folder / "photos")
        small.lab(folder / "lab")
        shutil.copytree(OLD_RUN, folder / "old")
        for name in RUNS:
            header = folder / "old" / name / "checkpoints" / "best-header.json"
            small.checkpoint(json.loads(header.read_text("utf-8")), header.with_name("best.safetensors"))
        asked = self.commands()
        answers = roclab(*asked.values(), cwd=folder, ROCLAB_CACHE=folder / "cache")
        self.answers: dict[str, Answer] = dict(zip(asked, answers, strict=True))

    def commands(self) -> dict[str, tuple[Any, ...]]:
        """In this order: later ones read what earlier ones left."""
        vision = {
            **{f"train {name}": ("train", "--data", "photos", *flags, "--out", f"runs/{name}")
               for name, flags in RUNS.items()},
            **{f"evaluate {name}": ("evaluate", f"runs/{name}", "--split", "test", "--json") for name in RUNS},
            "vision predict": ("predict", "runs/features", "photos/sky/00.png", "photos/brick", "--top", 2, "--json"),
            "vision audit": ("audit", "photos", "--json"),
            "vision errors": ("errors", "runs/features", "runs/finetune", "--out", "errors", "--json"),
            "vision compare": ("compare", "--models", "test_resnet", "--strategies", "features,finetune", "--seeds", 1,
                               "--epochs", 1, "--weights", "none", "--image-size", 64, "--data", "photos",
                               "--out", "compared", "--json"),
            # Before `evaluate`, which writes into the runs.
            "old errors": ("errors", "old/features", "old/finetune", "--no-heat-maps", "--out", "old-errors", "--json"),
            "old evaluate features": ("evaluate", "old/features", "--json"),
            "old evaluate finetune": ("evaluate", "old/finetune", "--split", "test", "--data-root", "photos", "--json"),
            "old predict": ("predict", "old/finetune", "photos/sky", "--json"),
            "old resume": ("train", "--resume", "old/finetune"),
        }  # fmt: skip
        me = ("--author", "Ada Lovelace", "--student-id", "31415", "--consulted", "", "--ai-tools", "", "--no-verify")
        packed = ("--runs", "runs", "--report", "report", "--lab", "lab", "--out", "handin.zip", "--incomplete")
        return {name: ("vision", *words) for name, words in vision.items()} | {
            "report": ("report", "--runs", "runs", "--errors", "errors", "--out", "report", *me, "--json"),
            "handin": ("handin", "--student-id", "31415", "--name", "Ada Lovelace", *packed, "--json"),
            "old report": ("report", "--runs", "old", "--no-explain", "--out", "old-report", *me, "--json"),
        }

    def json(self, name: str) -> Any:
        """What a command printed, with this machine's folder left out."""
        return self.shown(self.answers[name].json)

    def shown(self, value: Any) -> Any:
        return json.loads(json.dumps(value).replace(str(self.folder.resolve()), "WORLD"))


def rounded(value: Any) -> Any:
    """JSON without what was measured by a clock; floats to six digits."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items() if not MEASURED.search(key)}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 6) if isinstance(value, float) else value


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def run_folder(world: World, name: str) -> dict[str, Any]:
    """A run folder's files and their structure, the same on every machine."""
    run = world.folder / "runs" / name
    with open(run / "predictions.csv", newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    about = {path.name: structure(world.shown(json.loads(path.read_text("utf-8")))) for path in run.glob("*.json")}
    about["provenance.json"].pop("versions")  # whatever is installed
    return {
        "files": files(run),
        "json": about,
        "config.json": world.shown(json.loads((run / "config.json").read_text("utf-8"))),
        "metrics.jsonl": structure(lines(run / "metrics.jsonl")),
        "predictions.csv": {
            "header": head,
            "splits": [row[0] for row in rows],
            "photos": world.shown([row[1] for row in rows]),
        },
        "split.json": json.loads((run / "split.json").read_text("utf-8"))["images"],
        "checkpoint": checkpoint_header(run / "checkpoints" / "best.safetensors"),
    }


def checkpoint_header(path: Path) -> dict[str, Any]:
    """A safetensors file begins with the length of its header and the header: names, types and shapes."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about = header.pop("__metadata__", {})
    return {"metadata": about, "tensors": {name: [t["dtype"], t["shape"]] for name, t in header.items()}}


def results(world: World, name: str) -> dict[str, Any]:
    """The numbers that a run came to."""
    run = world.folder / "runs" / name
    with open(run / "predictions.csv", newline="", encoding="utf-8") as file:
        predictions = [[*row[:1], *row[2:4], *map(float, row[4:])] for row in list(csv.reader(file))[1:]]
    return {
        "metrics": rounded(lines(run / "metrics.jsonl")),
        "val": rounded(json.loads((run / "results-val.json").read_text("utf-8"))),
        "test": rounded(world.json(f"evaluate {name}")),
        "predictions": predictions,
    }


def checkpoint_bits(path: Path) -> dict[str, str]:
    """Of the file, and of its tensors alone: a difference in the first only is one of the header."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    spans = {name: t["data_offsets"] for name, t in header.items() if name != "__metadata__"}
    tensors = b"".join(name.encode() + data[start + spans[name][0] : start + spans[name][1]] for name in sorted(spans))
    return {"file": sha256(data), "tensors": sha256(tensors)}


def bits(world: World, name: str) -> dict[str, Any]:
    return checkpoint_bits(world.folder / "runs" / name / "checkpoints" / "best.safetensors")


def printed(world: World) -> dict[str, Any]:
    """Each command with --json → the structure of what it prints, and the files that it leaves."""
    names = ("predict", "audit", "errors", "compare")
    found = {f"vision {name}": structure(world.json(f"vision {name}")) for name in names}
    found |= {name: structure(world.json(name)) for name in ("report", "handin")}
    for run in found["report"]["runs"]:
        run.pop("versions")  # whatever is installed
    found["vision evaluate"] = structure(world.json("evaluate finetune"))
    for name in ("errors", "compared", "report"):
        world.answers["report"].text  # noqa: B018  (fails with its reason where there is no folder to look into)
        found[f"files of {name}"] = [f for f in files(world.folder / name) if "-seed0/" not in f]
    found["files of handin"] = hand_in(world.folder / "handin.zip")
    return found


def old_runs(world: World) -> dict[str, Any]:
    """What today's commands say of runs made before."""
    errors, report = world.json("old errors"), world.json("old report")
    return {
        "errors": {key: errors[key] for key in ("split", "n", "classes", "runs")},
        "report": {"split": report["split"], "runs": [[run["name"], run["finished"]] for run in report["runs"]]},
        "evaluate": {name: rounded(world.json(f"old evaluate {name}")) for name in RUNS},
        "predict": world.json("old predict"),
        "resume": world.answers["old resume"].text,
    }


def hand_in(path: Path) -> list[str]:
    """Names in the zip. The package's own files are left out, as they may move; that it is there is kept."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return plain_names("Code/roclab/*" if name.startswith("Code/roclab/") else name for name in names)


def now() -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        world = World(Path(folder))
        return {
            "runs": {name: run_folder(world, name) for name in RUNS},
            "printed": printed(world),
            "old runs": old_runs(world),
            "machines": {machine(): {name: {"checkpoint": bits(world, name), **results(world, name)} for name in RUNS}},
        }


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return read_record("vision")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_folder_holds_the_same(world, record, name):
    assert_same(run_folder(world, name), record["runs"][name])


@pytest.mark.parametrize("name", RUNS)
def test_a_run_comes_to_the_same_numbers(world, record, name):
    # Random weights and rounding differ between machines and versions; here they are the same.
    kept = {key: value for key, value in bits_of(record, machine())[name].items() if key != "checkpoint"}
    assert_near(json.loads(json.dumps(results(world, name))), kept, 2e-6)


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_has_the_same_bits(world, record, name):
    assert_same(bits(world, name), bits_of(record, machine())[name]["checkpoint"])


def test_the_commands_print_and_leave_the_same(world, record):
    assert_same(printed(world), record["printed"])


def test_runs_made_before_still_open(world, record):
    # Their weights come from a formula and their photos from bytes of ours: the same on every machine up to rounding.
    assert_near(json.loads(json.dumps(old_runs(world))), record["old runs"], 1e-3)
