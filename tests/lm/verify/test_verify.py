"""The implementation checker: wrong files are caught and their fault is named, right ones pass, no file does harm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from roclab.core.exceptions import RocLabError
from roclab.course.verify import OURS, verify
from roclab.course.verify.cases import CASES, Stored
from roclab.course.verify.checks import COMPONENTS, all_checks
from roclab.course.verify.judge import combined, expectation
from roclab.course.verify.mistakes import known
from roclab.course.verify.mistakes.parts import Gelu
from roclab.course.verify.mistakes.positions import NoMask
from roclab.course.verify.reference import Reference
from roclab.course.verify.sandbox import Sandbox
from tests.lm.build import assert_one_line, roclab
from tests.lm.verify import variants


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def check(sandbox, tmp_path):
    """Verify a source text."""

    def run(source: str | bytes, name: str = "roclm_model.py", **limits):
        file = tmp_path / name
        file.write_bytes(source if isinstance(source, bytes) else source.encode())
        report = verify(file, sandbox=sandbox, **limits)
        json.dumps(report, allow_nan=False)
        return report

    return run


def failed(report) -> dict[str, dict]:
    return {c["name"]: c for c in report["checks"] if not c["passed"]}


# ---- the table


def assert_named(report, component: str) -> None:
    assert not report["passed"]
    assert report["score"] < 1
    assert report["diagnosis"]["component"] == component, report["diagnosis"]
    assert all(c["hint"] for c in failed(report).values())


def by_name(variant) -> str:
    return f"{variant.component}-{variant.name}"


@pytest.mark.parametrize("variant", [*variants.WRONG[::6], *variants.UNLISTED[::3]], ids=by_name)
def test_a_wrong_variant_is_caught_and_its_part_named(check, variant):
    assert_named(check(variant.source()), variant.component)


@pytest.mark.slow
def test_every_wrong_variant_is_caught_and_its_part_named(check):
    for variant in [*variants.WRONG, *variants.UNLISTED]:
        assert_named(check(variant.source()), variant.component)


@pytest.mark.parametrize("variant", variants.RIGHT, ids=lambda v: v.name)
def test_a_right_variant_written_differently_passes(check, variant):
    report = check(variant.source())
    assert report["passed"], failed(report)
    assert (report["score"], report["diagnosis"]) == (1, None)


def test_another_style_throughout_passes(sandbox):
    report = verify(variants.COMPACT, sandbox=sandbox)
    assert report["passed"], failed(report)


def test_every_edit_fits_the_model_file(tmp_path):
    """Each stands in the file once, and what it leaves uses no name that is not there."""
    wrong = [*variants.WRONG, *variants.UNLISTED]
    assert len({v.source() for v in wrong}) == len(wrong) >= 40
    assert {v.component for v in variants.WRONG} == set(COMPONENTS) - {"file"}
    for number, variant in enumerate([*wrong, *variants.RIGHT]):
        (tmp_path / f"{number}.py").write_text(variant.source(), encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "--output-format", "concise"]
    found = subprocess.run([*ruff, str(tmp_path)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_document_tells_of_every_variant():
    text = (Path(__file__).parents[3] / "docs" / "verify.md").read_text(encoding="utf-8")
    for variant in [*variants.WRONG, *variants.UNLISTED, *variants.RIGHT]:
        assert f"{variant.component} | {variant.name} |" in text or (not variant.component and variant.name in text)


def test_two_mistakes_at_once_are_both_told(check):
    by = {v.name: v for v in variants.WRONG}
    source = by["gelu"].source()
    for old, new in (*by["none"].edits, *by["no residual around the mlp"].edits):
        assert source.count(old) == 1
        source = source.replace(old, new)
    hints = " ".join(c["hint"] for c in failed(check(source)).values())
    assert "GELU" in hints
    assert "no causal mask" in hints
    assert "residual around the MLP is missing" in hints


def test_what_follows_from_an_upstream_fault_says_so(check):
    by = {v.name: v for v in variants.WRONG}
    report = check(by["tiled"].source())
    assert "tiled" in failed(report)["decoder: stored logits"]["hint"]


@pytest.mark.parametrize(
    ("old", "new", "component"),
    [
        (".transpose(-2, -1) / math.sqrt(q.shape[-1])", ".transpose(1, 2) / math.sqrt(q.shape[-1])", "attention"),
        ("self.gate_proj(x)) * self.up_proj(x)", "self.gate_proj(x)) @ self.up_proj(x)", "SwiGLU"),
        ("cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)", "cos, sin = cos.unsqueeze(3), sin.unsqueeze(3)", "RoPE"),
        ("x = x + self.self_attn(", "x = x + x @ self.self_attn(", "decoder"),
    ],
)  # fmt: skip
def test_what_raises_is_laid_to_the_part_that_raised(check, old, new, component):
    source = GOOD.replace('attn_implementation: str = "sdpa"', 'attn_implementation: str = "eager"')
    assert source.count(old) == 1
    told = check(source.replace(old, new))["diagnosis"]
    assert told["component"] == component, told
    assert "(line " in told["hint"]


def by_variant(name: str) -> str:
    return next(v for v in [*variants.WRONG, *variants.UNLISTED] if v.name == name).source()


@pytest.mark.parametrize(
    ("variant", "name", "words"),
    [
        ("config eps not passed to q and k", "RMSNorm: eps in every norm", "q_norm and k_norm do not get"),
        ("config eps not passed in the layer", "RMSNorm: eps in every norm", "input_layernorm does not get"),
        ("seeds itself", "generation: drawn anew", "must not seed"),
        ("first row s end for all", "generation: each row to its own end", "every row"),
        ("temperature default", "generation: the signature", "temperature is 0.7, not 1.0"),
    ],
)
def test_what_only_one_check_sees(check, variant, name, words):
    report = check(by_variant(variant))
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
    assert words in check(by_variant(variant))["diagnosis"]["hint"]


# ---- the reference and the mistakes


def test_the_stored_logits_are_those_of_transformers_qwen3():
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    case = CASES["stored"]
    assert isinstance(case, Stored)
    peer = Qwen3ForCausalLM(Qwen3Config(**{**case.config, "attn_implementation": "eager"})).eval().double()
    peer.load_state_dict({n: torch.tensor(w, dtype=torch.float64) for n, w in case.weights.items()}, strict=True)
    with torch.no_grad():
        theirs = peer(torch.tensor(case.ids)).logits.numpy()
    assert np.abs(theirs - case.logits).max() < 1e-5  # their norms and angles are float32
    assert np.abs(Reference(case.config, case.weights).logits(case.ids) - case.logits).max() < 1e-10


def test_the_reference_shares_nothing_with_the_model():
    import ast

    import roclab.course.verify.reference as reference

    tree = ast.parse(Path(reference.__file__).read_text(encoding="utf-8"))
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert modules == {"__future__", "collections.abc", "typing", "numpy"}


@pytest.mark.parametrize("mistake", known(), ids=lambda m: m.__name__)
def test_every_known_mistake_shows_in_some_check(mistake):
    assert mistake.component in COMPONENTS
    assert mistake.hint()
    numeric = [c for c in all_checks() if c.expected and c.compare_mistakes]
    answers = [(c, expectation(c, mistake), expectation(c, Reference)) for c in numeric]
    assert any(wrong is not None and c.gap(wrong, right) > 2 * c.tolerance for c, wrong, right in answers)


def test_mistakes_go_together():
    case = CASES["order"]
    both = combined([NoMask, Gelu])(case.config, case.weights).logits(case.ids)
    for one in (NoMask, Gelu, Reference):
        assert np.abs(both - one(case.config, case.weights).logits(case.ids)).max() > 0.01


def test_greedy_answers_are_no_near_ties():
    """Rounding must not decide: at every step the best logit leads by far more than float32's error."""
    for name in ("generation", "end"):
        case = CASES[name]
        model = Reference(case.config, case.weights)
        ids = model.greedy(case.ids, 14)
        for t in range(case.ids.shape[1], ids.shape[1]):
            best = np.sort(model.logits(ids[:, :t])[:, -1], axis=-1)
            assert (best[:, -1] - best[:, -2]).min() > 1e-3


# ---- files that misbehave

GOOD = variants.SOURCE
SCRIBBLE = """import os
for n in range(3, 64):
    try: os.write(n, b'{"kind": "answer"')
    except OSError: pass
os._exit(0)"""


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import time\ntime.sleep(600)", "hangs: not imported after 2 seconds"),
        ("while True: pass", "hangs: not imported after 2 seconds"),
        ("while True: print('x' * 1000)", "it prints, or writes into a file, more than 8 MB"),
        ("import os\nos._exit(3)", "ended itself with exit code 3"),
        ("import os\nos._exit(0)", "ended itself with exit code 0"),
        ("import ctypes\nctypes.string_at(0)", "crashed with SIGSEGV (a memory fault)"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)", "crashed with SIGTERM"),
        ("import sys\nsys.exit(0)", "it calls sys.exit(0) while it is imported"),
        ("import sys\nsys.exit('bye')", "it calls sys.exit('bye') while it is imported"),
        ("def f(:\n  pass", "SyntaxError"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "cannot be imported"),
        (b"x = '\xff\xfe'", "cannot be imported"),
        ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
        ("raise ValueError('at import\\nsecond line')", "ValueError: at import second line (line 1)"),
        ("x = bytearray(20 << 30)", "MemoryError"),
        ("import subprocess\nsubprocess.run(['touch', 'x'])", "starting a program"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 9))", "using the network"),
        ("import os\nos.write(1, b'x' * 100)\nos._exit(1)", "ended itself with exit code 1"),
        (SCRIBBLE, "ended itself"),
        ("import os, signal\nos.kill(os.getppid(), signal.SIGSTOP) if False else os.abort()", "crashed with SIGABRT"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_imported_is_one_clear_line(check, source, words):
    report = check(source, seconds=2)
    assert (report["passed"], report["diagnosis"]["component"]) == (False, "file")
    hint = report["diagnosis"]["hint"]
    assert words in hint
    assert "\n" not in hint
    assert len(report["checks"]) == len(all_checks()) + 3


def test_a_notebook_says_what_to_do(check):
    report = check('{"cells": [null]}', "model.ipynb")
    assert "export it as a script" in report["diagnosis"]["hint"]


def test_prints_are_reported_and_forge_nothing(check):
    forged = 'print(\'{"kind": "answer", "value": []}\')\nprint("second")\n'
    report = check(GOOD + "\n" + forged)
    assert set(failed(report)) == {"file: prints nothing"}
    assert "the file prints 2 lines while it is imported" in report["diagnosis"]["hint"]


def test_prints_while_it_runs_are_reported(check):
    line = "        T = input_ids.shape[1]\n"
    assert line in GOOD
    report = check(GOOD.replace(line, line + "        print(T)\n"))
    assert set(failed(report)) == {"file: prints nothing"}
    assert "while it runs" in report["diagnosis"]["hint"]


def test_written_files_are_reported_or_refused(check, tmp_path):
    report = check(GOOD + "\nopen('left.txt', 'w').write('x')\n")
    assert "writing left.txt" in failed(report)["file: touches nothing"]["hint"]
    assert set(failed(report)) == {"file: touches nothing"}
    outside = tmp_path / "outside.txt"
    report = check(GOOD + f"\ntry: open({str(outside)!r}, 'w')\nexcept OSError: pass\n")
    assert f"writing {outside}" in failed(report)["file: touches nothing"]["hint"]
    assert not outside.exists()


def test_the_environment_holds_no_secrets(check, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    report = check(GOOD + "\nimport os\nassert 'HF_TOKEN' not in os.environ\nassert os.environ['HOME'] != '/root'\n")
    assert report["passed"], report["diagnosis"]


def test_a_crash_costs_its_check_only(check):
    crash = "def repeat_kv(x: Tensor, n_rep: int) -> Tensor:\n    if n_rep == 1:\n        import os; os.abort()\n"
    report = check(GOOD.replace("def repeat_kv(x: Tensor, n_rep: int) -> Tensor:\n", crash))
    assert set(failed(report)) == {"GQA: repeat_kv once"}
    assert "crashed with SIGABRT" in report["diagnosis"]["hint"]


def test_a_hang_costs_its_check_only(check):
    hang = "def repeat_kv(x: Tensor, n_rep: int) -> Tensor:\n    while n_rep == 1: pass\n"
    report = check(GOOD.replace("def repeat_kv(x: Tensor, n_rep: int) -> Tensor:\n", hang), seconds=3)
    assert set(failed(report)) == {"GQA: repeat_kv once"}
    assert "hangs: no answer after 3 seconds" in report["diagnosis"]["hint"]


def test_a_file_that_hangs_everywhere_does_not_cost_a_limit_a_check(check):
    docstring = '        """x gives the dtype; position_ids (B, T)'
    report = check(GOOD.replace(docstring, f"        while True: pass\n{docstring}"), seconds=2)
    assert any("not run" in c["found"] for c in failed(report).values())


def test_missing_names_are_told(check):
    report = check(GOOD.replace("def rotate_half(", "def half_rotate(").replace("rotate_half(q)", "half_rotate(q)")
                   .replace("rotate_half(k)", "half_rotate(k)"))  # fmt: skip
    assert report["diagnosis"]["hint"] == "the file does not define rotate_half"
    assert "stored logits" not in " ".join(failed(report))


@pytest.mark.parametrize(
    "output", ["{'logits': x}", "x.detach().numpy()", "(x,)", "None", "x[0]", "x * float('nan')", "x.half()"]
)
def test_other_outputs_are_failed_checks(check, output):
    head = "return self.lm_head(x[:, -logits_to_keep:])"
    report = check(GOOD.replace(head, f"x = self.lm_head(x[:, -logits_to_keep:])\n        return {output}"))
    assert "decoder: stored logits" in failed(report)


def test_an_orphan_process_does_not_outlive_its_file(check, sandbox):
    worker = sandbox._process.pid
    children = Path(f"/proc/{worker}/task/{worker}/children")
    if not children.exists():
        pytest.skip("no /proc here to look into")
    check("import os, time\nif os.fork() == 0:\n  os.setsid()\n  time.sleep(600)\nraise SystemExit")
    assert children.read_text().split() == []


# ---- the command


def test_the_command_checks_ours_by_default():
    done = roclab("lm", "verify", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["score"], report["passed"], report["file"]) == (1, True, str(OURS))
    assert {"name", "component", "passed", "deviation", "hint"} <= set(report["checks"][0])
    assert {c["component"] for c in report["checks"]} == set(COMPONENTS)


def test_the_command_fails_on_a_wrong_file_and_says_why(tmp_path):
    file = tmp_path / "roclm_model.py"
    file.write_text(next(v for v in variants.WRONG if v.name == "gelu").source(), encoding="utf-8")
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
