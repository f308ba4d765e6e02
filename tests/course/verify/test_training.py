"""The checks of the training parts: each mistake is found and named, each part stands alone."""

from __future__ import annotations

import csv
import json

import pytest

from roclab.course.verify.checker import all_checks
from roclab.course.verify.parts import TRAINING_PARTS
from tests.course.verify.conftest import failed, quick
from tests.course.verify.table import training_variants
from tests.course.verify.training_variants import ADAMW, TRAINING
from tests.course.verify.variants import PLAIN
from tests.lm.build import assert_one_line, roclab

WRONG = {f"{part}: {name}": text for part, name, text in training_variants() if part}
HINTS = {c.hint for c in all_checks(training=True)}
# What no formula names: these are told by their check's own hint or by what was raised.
UNNAMED = {
    "generator used up", "int32", "no optimizer", "loss detached", "two dimensions only", "windows over the end",
    "gradients taken for granted", "warm-up of nothing", "embedding detached", "optimizer not saved",
    "model not loaded", "iteration not returned",
}  # fmt: skip


def test_right_training_parts_pass_and_nothing_changes_without_the_flag(check):
    report = check(TRAINING, training=True)
    assert report["passed"], failed(report)
    model = check(TRAINING)
    assert model["passed"]
    assert model["checks_total"] == 68 < report["checks_total"] == len(all_checks(training=True))
    assert [c["name"] for c in report["checks"][:68]] == [c["name"] for c in model["checks"]]
    assert {c["component"] for c in report["checks"][68:]} == TRAINING_PARTS


@pytest.mark.parametrize("mistake", quick(list(WRONG), 6))
def test_a_mistake_in_a_training_part_is_found_and_named(check, mistake):
    report, (part, name) = check(WRONG[mistake], training=True), mistake.split(": ")
    assert report["diagnosis"]["component"] == part, report["diagnosis"]
    named = report["diagnosis"]["hint"].startswith(f"{part}: ") and report["diagnosis"]["hint"] not in HINTS
    assert named or name in UNNAMED, report["diagnosis"]
    assert {c["component"] for c in failed(report).values()} <= {part, "overfitting"}


def test_two_parts_with_mistakes_are_both_told(check):
    text = TRAINING.replace("losses.mean()", "losses.sum()").replace("p -= lr * decay * p", "pass")
    hints = " ".join(c["hint"] for c in failed(check(text, training=True)).values())
    assert "The losses are summed" in hints
    assert "The weight decay is left out" in hints


def test_a_missing_part_is_named_and_comes_after_a_wrong_one(check):
    none = check(PLAIN, training=True)
    assert none["checks_passed"] == 68
    assert none["diagnosis"]["hint"] == "loss: the file does not define cross_entropy"
    assert len(failed(none)) == len(all_checks(training=True)) - 68  # what is not there passes nothing
    hints = " ".join(c["hint"] for c in failed(none).values())
    for name in ("AdamW", "get_lr_cosine_schedule", "clip_gradients or gradient_clipping", "save_checkpoint"):
        assert f"the file does not define {name}" in hints
    text = TRAINING.replace("def cross_entropy", "def another").replace("p -= lr * decay * p", "pass")
    report = check(text.replace("def clip_gradients", "def gradient_clipping"), training=True)
    assert "The weight decay is left out" in report["diagnosis"]["hint"]
    assert failed(report)["overfitting: one batch"]["hint"] == "overfitting: the file does not define cross_entropy"
    assert {c["component"] for c in failed(report).values()} == {"loss", "AdamW", "overfitting"}


@pytest.mark.parametrize(
    ("part", "line", "words"),
    [
        ("AdamW", "from torch.optim import AdamW", "AdamW is defined in torch/optim/"),
        ("AdamW", "class AdamW(torch.optim.AdamW): pass", "AdamW is defined in torch/optim/"),
        ("AdamW", f"{ADAMW}        self.inner = torch.optim.AdamW(params, lr, betas, eps, weight_decay)\n"
         "    def step(self, closure=None):\n        self.inner.step()", "of torch/optim/adam"),
        ("loss", "from torch.nn.functional import cross_entropy", "cross_entropy is defined in torch/nn/functional.py"),
        ("clipping", "clip_gradients = torch.nn.utils.clip_grad_norm_", "clip_gradients is defined in torch/nn/utils/"),
    ],
)  # fmt: skip
def test_a_part_of_torch_is_not_the_file_s_own(check, part, line, words):
    report = check(f"{TRAINING}\n{line}\n", training=True)
    assert report["diagnosis"]["check"] == f"{part}: own implementation"
    assert words in report["diagnosis"]["hint"]
    assert not any(c["passed"] for c in report["checks"] if c["component"] == part)
    assert check(f"{TRAINING}\n{line}\n")["passed"]  # without the flag no one asks


def test_right_parts_written_as_others_do_pass(check):
    """The decay after the update, eps added to the uncorrected root, and 1e-6 added to the norm: as in CS336."""
    text = TRAINING
    for old, new in (
        ("                p -= lr * decay * p\n                m, v = m / (1 - b1**t), v / (1 - b2**t)\n"
         "                p -= lr * m / (v.sqrt() + eps)\n",
         "                p -= lr * math.sqrt(1 - b2**t) / (1 - b1**t) * m / (v.sqrt() + eps)\n"
         "                p -= lr * decay * p\n"),
        ("max_norm / norm", "max_norm / (norm + 1e-6)"),
    ):  # fmt: skip
        assert text.count(old) == 1
        text = text.replace(old, new)
    report = check(text, training=True)
    assert report["passed"], failed(report)


def test_the_command_takes_points_and_tables_of_training_parts(tmp_path):
    (tmp_path / "a.py").write_text(TRAINING.replace("losses.mean()", "losses.sum()"), encoding="utf-8")
    (tmp_path / "points.toml").write_text("loss = 5\nAdamW = 2\n")
    options = ("--training", "--points", "points.toml", "--csv", "t.csv", "--gradescope", "r.json", "--json")
    done = roclab("lm", "verify", "a.py", *options, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert [(row["name"], row["score"]) for row in report["points"]["rows"]] == [("loss", 2.5), ("AdamW", 2)]
    row = next(csv.DictReader((tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()))
    assert (row["part"], row["points: AdamW"]) == ("loss", "2.0")
    tests = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["tests"]
    assert [test["status"] for test in tests] == ["failed", "passed"]
    without = roclab("lm", "verify", "a.py", "--points", "points.toml", cwd=tmp_path)
    assert_one_line(without, "no part or check is named 'loss'")
    assert_one_line(roclab("lm", "verify", "--training", cwd=tmp_path), "--training needs a FILE")
