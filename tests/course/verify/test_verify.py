"""Wrong implementations are caught and their fault is named, right ones pass; the reference and the known mistakes."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import roclab.course.verify.reference as reference_module
from roclab.core.exceptions import RocLabError
from roclab.course.verify.answers import model
from roclab.course.verify.cases import CASES, stored_arrays
from roclab.course.verify.check import expectation
from roclab.course.verify.checker import OURS, all_checks, verify
from roclab.course.verify.mistakes import MISTAKES
from roclab.course.verify.parts import TRAINING_PARTS
from roclab.course.verify.reference import Reference
from tests.course.verify.conftest import failed, quick
from tests.course.verify.table import training_variants, variants
from tests.course.verify.variants import GATED, LAYER_1, PLAIN, SCORES, WRONG, changed, edited
from tests.lm.build import assert_one_line, roclab

VARIANTS = list(variants())
WRONG_ONES = [v for v in VARIANTS if v[0]]
RIGHT_ONES = [v for v in VARIANTS if not v[0]]
TEXT = {name: text for _, name, text in VARIANTS}
COMPONENTS = {"file", *WRONG}


def mistake(words: str):
    return next(m for m in MISTAKES if words in m.hint)


# ---- the table


def assert_named(report, component: str) -> None:
    assert not report["passed"]
    assert report["score"] < 1
    assert report["diagnosis"]["component"] == component, report["diagnosis"]
    assert all(c["hint"] for c in failed(report).values())


@pytest.mark.parametrize(("component", "name", "text"), WRONG_ONES[::12], ids=lambda v: v if len(v) < 60 else "")
def test_a_wrong_variant_is_caught_and_its_part_named(check, component, name, text):
    assert_named(check(text), component)


@pytest.mark.slow
def test_every_wrong_variant_is_caught_and_its_part_named(check):
    for component, _, text in WRONG_ONES:
        assert_named(check(text), component)


@pytest.mark.parametrize("name", quick([name for _, name, _ in RIGHT_ONES], 3))
def test_a_right_variant_written_differently_passes(check, name):
    report = check(TEXT[name])
    assert report["passed"], failed(report)
    assert (report["score"], report["diagnosis"]) == (1, None)


def test_every_variant_is_another_text_that_python_takes():
    assert len({text for _, _, text in WRONG_ONES}) == len(WRONG_ONES) >= 187
    for _, name, text in VARIANTS:
        compile(text, name, "exec")


def test_the_document_tells_of_every_variant():
    text = (Path(__file__).parents[3] / "docs" / "verify.md").read_text(encoding="utf-8")
    for component, name, _ in [*VARIANTS, *training_variants()]:
        assert f"| {component} | {name} |" in text or (not component and name in text)


# ---- our own implementation


@pytest.mark.parametrize(
    ("component", "words", "patch"),
    [
        ("RMSNorm", "is not used", "RocLMRMSNorm.forward = lambda self, x: F.rms_norm(x, x.shape[-1:], eps=self.eps)"),
        ("SwiGLU", "ReLU", "RocLMMLP.forward = lambda s, x: s.down_proj(F.relu(s.gate_proj(x)) * s.up_proj(x))"),
        ("RoPE", "lacks its minus", "rotate_half = lambda x: torch.cat(x.chunk(2, -1)[::-1], -1)"),
        ("head", "probabilities", "old = RocLMForCausalLM.forward\n"
         "RocLMForCausalLM.forward = lambda *a, **k: old(*a, **k).softmax(-1)"),
    ],
)  # fmt: skip
def test_a_mistake_in_our_own_file_is_named(check, component, words, patch):
    """The patch stands behind the file and uses the handout's names alone."""
    source = f"{OURS.read_text(encoding='utf-8')}\n\nimport torch\nimport torch.nn.functional as F\n{patch}\n"
    report = check(source)
    assert_named(report, component)
    assert words in report["diagnosis"]["hint"]


# ---- what the checker says


def test_two_mistakes_at_once_are_both_told(check):
    source = PLAIN
    for part, name in (("SwiGLU", "gelu"), ("mask", "none"), ("decoder", "no residual around the mlp")):
        source = source.replace(*WRONG[part][name])
    hints = " ".join(c["hint"] for c in failed(check(source)).values())
    assert "GELU" in hints
    assert "no causal mask" in hints
    assert "residual around the MLP is missing" in hints


def test_what_follows_from_an_upstream_fault_says_so(check):
    assert "tiled" in failed(check(TEXT["tiled"]))["decoder: stored logits"]["hint"]


@pytest.mark.parametrize(
    ("edit", "component"),
    [
        (changed(SCORES, "transpose(-2, -1)", "transpose(1, 2)"), "attention"),
        (changed(GATED, " * self.up_proj", " @ self.up_proj"), "SwiGLU"),
        (("cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)", "cos, sin = cos.unsqueeze(3), sin.unsqueeze(3)"), "RoPE"),
        (changed(LAYER_1, "x + self.self_attn(", "x + x @ self.self_attn("), "decoder"),
    ],
)
def test_what_raises_is_laid_to_the_part_that_raised(check, edit, component):
    told = check(edited(edit))["diagnosis"]
    assert told["component"] == component, told
    assert "(line " in told["hint"]


@pytest.mark.parametrize(
    ("variant", "name", "words"),
    [
        ("config eps not passed to q and k", "RMSNorm: eps in every norm", "q_norm and k_norm do not get"),
        ("config eps not passed in the layer", "RMSNorm: eps in every norm", "input_layernorm does not get"),
        ("seeds itself", "generation: drawn anew", "must not seed"),
        ("first row's end for all", "generation: each row to its own end", "every row"),
        ("temperature default", "generation: the signature", "temperature is 0.7, not 1.0"),
    ],
)
def test_what_only_one_check_sees(check, variant, name, words):
    report = check(TEXT[variant])
    assert set(failed(report)) == {name}
    assert words in report["diagnosis"]["hint"]


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("inverted", "The mask is inverted"),
        ("inverted for sdpa", "The mask is inverted"),
        ("one layer shared", "ModuleList([layer] * N)"),
        ("final norm after every layer", "after every layer"),
        ("softmax twice", "taken twice"),
    ],
)
def test_common_mistakes_have_their_name(check, variant, words):
    assert words in check(TEXT[variant])["diagnosis"]["hint"]


# ---- the reference and the mistakes


def test_the_stored_logits_are_those_of_transformers_qwen3():
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    case, logits = CASES["stored"], stored_arrays()["logits"]
    peer = Qwen3ForCausalLM(Qwen3Config(**{**case.config, "attn_implementation": "eager"})).eval().double()
    peer.load_state_dict({n: torch.tensor(w, dtype=torch.float64) for n, w in case.weights.items()}, strict=True)
    with torch.no_grad():
        theirs = peer(torch.tensor(case.ids)).logits.numpy()
    assert np.abs(theirs - logits).max() < 1e-5  # their norms and angles are float32
    assert np.abs(model("stored").logits(case.ids) - logits).max() < 1e-10


def test_the_reference_shares_nothing_with_the_model():
    tree = ast.parse(Path(reference_module.__file__).read_text(encoding="utf-8"))
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert modules == {"__future__", "collections.abc", "math", "types", "typing", "numpy"}


right_answer = cache(expectation)


@pytest.mark.parametrize("mistake", quick(MISTAKES, 6), ids=lambda m: m.hint[:40])
def test_every_known_mistake_shows_in_some_check(mistake):
    assert mistake.component in COMPONENTS | TRAINING_PARTS
    assert mistake.hint
    assert all(callable(getattr(Reference, name)) for name in mistake.replaced)
    training = mistake.component in TRAINING_PARTS
    numeric = [c for c in all_checks(training) if c.expected and c.compare_mistakes]
    answers = [(c, expectation(c, (mistake,)), right_answer(c)) for c in numeric]
    assert any(wrong is not None and c.gap(wrong, right) > 2 * c.tolerance for c, wrong, right in answers)


def test_mistakes_go_together():
    mask, gelu = mistake("There is no causal mask"), mistake("The activation is GELU: ")
    check = next(c for c in all_checks() if c.name == "decoder: order and residuals")
    both = expectation(check, (mask, gelu))
    for one in ((mask,), (gelu,), ()):
        assert np.abs(both - expectation(check, one)).max() > 0.01


def test_greedy_answers_are_no_near_ties():
    """Rounding must not decide: at every step the best logit leads by far more than float32's error."""
    for name in ("generation", "end"):
        reference, prompt = model(name), CASES[name].ids
        ids = reference.greedy(prompt, 14)
        for t in range(prompt.shape[1], ids.shape[1]):
            best = np.sort(reference.logits(ids[:, :t])[:, -1], axis=-1)
            assert (best[:, -1] - best[:, -2]).min() > 1e-3


# ---- the command


def test_the_command_checks_ours_by_default():
    done = roclab("lm", "verify", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["score"], report["passed"], report["file"]) == (1, True, str(OURS))
    assert {"name", "component", "passed", "deviation", "hint"} <= set(report["checks"][0])
    assert {c["component"] for c in report["checks"]} == COMPONENTS


def test_the_command_fails_on_a_wrong_file_and_says_why(tmp_path):
    file = tmp_path / "roclm_model.py"
    file.write_text(TEXT["gelu"], encoding="utf-8")
    done = roclab("lm", "verify", str(file), COLUMNS="200")
    assert done.returncode == 1
    assert "Most likely: SwiGLU: The activation is GELU" in done.stdout
    assert done.stderr == ""


def test_a_mistake_of_the_user_is_one_line(tmp_path):
    assert_one_line(roclab("lm", "verify", "no/such/file.py"), "no/such/file.py: no such file")
    assert_one_line(roclab("lm", "verify", str(tmp_path)), "is a folder, not a Python file")


def test_verify_raises_for_what_is_not_a_file(tmp_path):
    with pytest.raises(RocLabError, match="no such file"):
        verify(tmp_path / "missing.py")
