"""Files that misbehave: each fault is one clear line, costs its own check only, and does no harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from roclab.course.verify.checker import all_checks
from tests.course.verify.conftest import failed
from tests.course.verify.variants import HEAD, POSITIONS, before, edited
from tests.course.verify.variants import PLAIN as GOOD

REPEAT_KV = "def repeat_kv(x, n_rep):\n"
ONCE = "(n_rep, x.shape[-1]) == (1, 4)"  # in one check alone
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
        ("while True: print('x' * 1000)", "it prints, or writes into a file, more than 16 MB"),
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
    assert len(report["checks"]) == len(all_checks())


def test_prints_are_reported_and_forge_nothing(check):
    forged = 'print(\'{"kind": "answer", "value": []}\')\nprint("second")\n'
    report = check(GOOD + "\n" + forged)
    assert set(failed(report)) == {"file: prints nothing"}
    assert "the file prints 2 lines while it is imported" in report["diagnosis"]["hint"]


def test_prints_while_it_runs_are_reported(check):
    report = check(edited(before(POSITIONS, "print(T)")))
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
    crash = f"{REPEAT_KV}    if {ONCE}:\n        import os; os.abort()\n"
    report = check(edited((REPEAT_KV, crash)))
    assert set(failed(report)) == {"GQA: repeat_kv once"}
    assert "crashed with SIGABRT" in report["diagnosis"]["hint"]


def test_a_hang_costs_its_check_only(check):
    report = check(edited((REPEAT_KV, f"{REPEAT_KV}    while {ONCE}: pass\n")), seconds=3)
    assert set(failed(report)) == {"GQA: repeat_kv once"}
    assert "hangs: no answer after 3 seconds" in report["diagnosis"]["hint"]


def test_a_file_that_hangs_everywhere_does_not_cost_a_limit_a_check(check):
    report = check(edited(before(POSITIONS, "while True: pass")), seconds=2)
    assert any("not run" in c["found"] for c in failed(report).values())


def test_the_whole_file_has_a_limit(check):
    report = check(edited(before(POSITIONS, "import time; time.sleep(0.5)")), total_seconds=2)
    assert any("more than 2 seconds in all" in c["found"] for c in failed(report).values())


def test_missing_names_are_told(check):
    report = check(GOOD.replace("rotate_half", "half_rotate"))
    assert report["diagnosis"]["hint"] == "the file does not define rotate_half"
    assert "stored logits" not in " ".join(failed(report))


def test_an_import_of_matplotlib_is_no_fault(check):
    pytest.importorskip("matplotlib")
    report = check(GOOD + "\nimport matplotlib.pyplot as plt\n", seconds=60)
    assert report["passed"], failed(report)


def test_a_model_too_large_for_the_limit_is_told_with_the_remedy(check):
    report = check(GOOD + "\nmodel = torch.empty(3 << 30)\n")
    hint = report["diagnosis"]["hint"]
    assert "more memory than the limit of 2048 MB (--memory-mb)" in hint
    assert "if __name__ == '__main__'" in hint


def test_a_process_started_at_import_is_told(check):
    report = check(GOOD + "\nimport os\nos.fork()\n")
    assert "refused while the file is checked: starting a process" in report["diagnosis"]["hint"]


@pytest.mark.parametrize(
    "output", ["{'logits': x}", "x.detach().numpy()", "(x,)", "None", "x[0]", "x * float('nan')", "x.half()"]
)
def test_other_outputs_are_failed_checks(check, output):
    report = check(edited((HEAD, f"x = self.lm_head(x)\n        return {output}")))
    assert "decoder: stored logits" in failed(report)


def test_an_orphan_process_does_not_outlive_its_file(check, sandbox):
    worker = sandbox._process.pid
    children = Path(f"/proc/{worker}/task/{worker}/children")
    if not children.exists():
        pytest.skip("no /proc here to look into")
    check(
        "import ctypes, os, time\nif ctypes.CDLL(None).fork() == 0:\n  os.setsid()\n  time.sleep(600)\nraise SystemExit"
    )
    assert children.read_text().split() == []
