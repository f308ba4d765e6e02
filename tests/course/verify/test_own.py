"""Whether the file is the student's own, and what it does to pass or break the checker: each told in one true line."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from roclab.course.verify.checker import OURS
from roclab.course.verify.source import NODES, same_structure
from tests.course.verify.conftest import failed
from tests.course.verify.more_variants import COMPACT
from tests.course.verify.variants import PLAIN as GOOD
from tests.course.verify.variants import edited

OURS_TEXT = OURS.read_text(encoding="utf-8")
PARTS = {"RMSNorm", "SwiGLU", "RoPE", "GQA", "attention", "decoder", "head", "generation", "checkpoint"}
REPEAT_KV = "def repeat_kv(x, n_rep):\n"
BY_PATH = f"""import sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location('mine', {str(OURS)!r})
m = sys.modules['mine'] = module_from_spec(spec)
spec.loader.exec_module(m)
"""


def foreign(report) -> set[str]:
    return {c["component"] for c in failed(report).values() if c["name"].endswith(": own implementation")}


# ---- what stands in for a part


@pytest.mark.parametrize(
    "source",
    [
        "from roclab.lm.model import *\n",
        "import importlib\nglobals().update(vars(importlib.import_module('roclab.lm.model')))\n",
        f"{BY_PATH}from mine import *\n",
        f"import sys\nsys.path.insert(0, {str(OURS.parent)!r})\nfrom model import *\n",
        f"{BY_PATH}globals().update(vars(m))\nclass RocLMMLP(RocLMMLP): pass\n",
    ],
)
def test_our_own_implementation_does_not_pass_as_anothers(check, source):
    report = check(source)
    assert foreign(report) == PARTS
    assert report["checks_passed"] == 4  # those of the file
    hint = report["diagnosis"]["hint"]
    assert hint.startswith("RMSNorm must be the file's own code: RocLMRMSNorm is defined in roclab/lm/model.py")


@pytest.mark.parametrize(
    ("before", "after", "part", "words"),
    [
        ("class RocLMMLP(nn.Module):", "class RocLMMLP(ours.RocLMMLP): pass\nclass Unused(nn.Module):", "SwiGLU",
         "RocLMMLP is defined in roclab/lm/model.py"),
        (REPEAT_KV, f"{REPEAT_KV}    return ours.repeat_kv(x, n_rep)\n", "GQA",
         "repeat_kv of roclab/lm/model.py computes"),
        (REPEAT_KV, "from helper import repeat_kv\ndef unused(x, n_rep):\n", "GQA",
         "repeat_kv is defined in helper.py"),
        ("class RocLMRMSNorm(nn.Module):", "class RocLMRMSNorm(nn.RMSNorm): pass\nclass Unused(nn.Module):", "RMSNorm",
         "RocLMRMSNorm is defined in torch"),
        (REPEAT_KV,
         f"exec('def kv(x, n): return x.repeat_interleave(n, 1)')\n{REPEAT_KV}    return kv(x, n_rep)\n", "GQA",
         "kv of code made from a text (exec) computes in it"),
    ],
)  # fmt: skip
def test_a_part_of_another_is_not_the_file_s_own(check, tmp_path, before, after, part, words):
    (tmp_path / "helper.py").write_text(
        f"import torch\ndef inner(x, n):\n    return x.repeat_interleave(n, 1)\n{REPEAT_KV}    return inner(x, n_rep)\n"
    )
    source = edited((before, after))
    report = check(source.replace("import torch\n", "import roclab.lm.model as ours\nimport torch\n", 1))
    assert foreign(report) == {part}
    assert words in report["diagnosis"]["hint"]
    assert not any(c["passed"] for c in report["checks"] if c["component"] == part)


@pytest.mark.slow
def test_a_part_of_transformers_is_not_the_file_s_own(check):
    line = "from transformers.models.qwen3.modeling_qwen3 import repeat_kv\ndef unused(x, n_rep):\n"
    report = check(edited((REPEAT_KV, line)), seconds=100)
    assert foreign(report) == {"GQA"}
    assert "repeat_kv is defined in transformers/models/qwen3/modeling_qwen3.py" in report["diagnosis"]["hint"]


def test_an_import_is_no_stand_in(check):
    report = check(GOOD.replace("import torch\n", "import torch\nimport numpy as np\nimport roclab.lm.model\n", 1))
    assert report["passed"], failed(report)


# ---- structure


class Renamed(ast.NodeTransformer):
    def visit_Name(self, node):
        node.id = f"my_{node.id}"
        return node

    def visit_arg(self, node):
        node.arg, node.annotation = f"my_{node.arg}", None
        return node

    def visit_FunctionDef(self, node):
        node.name = f"my_{node.name}"
        self.generic_visit(node)
        if ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
        return node


def test_a_copy_with_other_names_has_the_same_structure(check):
    copy = ast.unparse(Renamed().visit(ast.parse(OURS_TEXT)))
    assert "RMSNorm over the last" not in copy
    found = same_structure(copy, OURS_TEXT)
    assert found["same"] == found["of"] > 15
    report = check(f"{OURS_TEXT}\n# another file\n")
    assert f"{found['of']} of {found['of']} functions have the same structure as RocLab's own file" in report["notes"]
    assert report["passed"]  # a fact, no failed check


def test_files_written_from_the_same_formulas_do_not_share_their_structure():
    found = importlib.util.find_spec("transformers")
    assert found
    qwen3 = Path(found.origin).parent / "models" / "qwen3" / "modeling_qwen3.py"
    for text in (COMPACT, GOOD, qwen3.read_text(encoding="utf-8")):
        found = same_structure(text, OURS_TEXT)
        assert found["same"] / found["of"] < 0.5
    assert NODES > 30
    assert same_structure("def f(:", OURS_TEXT) is None


# ---- what is replaced, forged, read


AT_IMPORT = {
    "torch.equal = lambda *a: True": "replacing torch.equal",
    "torch.Tensor.tolist = lambda self: []": "replacing Tensor.tolist",
    "F.silu = F.gelu": "replacing F.silu",
    "nn.Linear.forward = lambda self, x: x": "replacing Linear.forward",
    "import json\njson.dumps = lambda *a, **k: 'null'": "replacing json.dumps",
    "import builtins\nbuiltins.getattr = lambda *a: None": "replacing builtins.getattr",
    "import os\nos.write = lambda n, data: len(data)": "replacing os.write",
}


@pytest.mark.parametrize("line", AT_IMPORT)
def test_what_is_replaced_is_put_back_and_told(check, line):
    report = check(f"{GOOD}\nimport torch.nn.functional as F\n{line}\n")
    assert set(failed(report)) == {"file: touches nothing"}
    assert AT_IMPORT[line] in report["diagnosis"]["hint"]


def test_what_is_replaced_while_it_runs_is_told(check):
    report = check(edited((REPEAT_KV, f"{REPEAT_KV}    torch.Tensor.tolist = lambda self: [[1.0]]\n")))
    assert report["diagnosis"]["component"] == "file"
    assert "replacing Tensor.tolist" in report["diagnosis"]["hint"]
    assert all("replacing" in c["hint"] for n, c in failed(report).items() if n.startswith("GQA"))
    assert not failed(report).keys() & {"RMSNorm: the formula", "SwiGLU: the formula"}


FORGED = """import os
for n in range(3, 64):
    for line in (b'{"kind": "answer", "refused": [], "where": 5, "value": []}', b'[]', b'\\xff', b'{"kind"'):
        try: os.write(n, line + b'\\n' * (line != b'{"kind"'))
        except OSError: pass
"""


def test_forged_lines_are_told_and_change_nothing(check):
    report = check(f"{GOOD}\n{FORGED}")
    assert set(failed(report)) == {"file: touches nothing"}
    assert "writing into a descriptor that is not its own" in report["diagnosis"]["hint"]
    report = check(edited((REPEAT_KV, REPEAT_KV + "".join(f"    {line}\n" for line in FORGED.splitlines()))))
    assert set(failed(report)) == {"file: touches nothing"}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (f"exec(open({str(OURS)!r}).read())", "reading RocLab's own roclab/lm/model.py"),
        (f"import runpy\nglobals().update(runpy.run_path({str(OURS)!r}))", "reading RocLab's own roclab/lm/model.py"),
        (f"from pathlib import Path\nPath({str(OURS.parents[1] / 'course/verify/stored.safetensors')!r}).read_bytes()",
         "reading RocLab's own roclab/course/verify/stored.safetensors"),
        ("from roclab.course.verify.answers import ANSWERS", "reading RocLab's own roclab/course"),
        ("import inspect, roclab.lm.model as m\nexec(inspect.getsource(m))", "reading RocLab's own"),
        ("exec(compile('x = 1', __file__, 'exec'))", "running other code under the file's own name"),
        ("import os\nos.kill(os.getppid(), 9)", "ending another process"),
        ("import os\nos.fork()", "starting a process"),
        ("import sys\nsys.setprofile(None)", "switching off how the checker looks on"),
    ],
)  # fmt: skip
def test_what_is_refused_at_import_is_told(check, source, words):
    report = check(f"{GOOD}\n{source}\n")
    assert report["diagnosis"]["component"] == "file"
    assert words in report["diagnosis"]["hint"], report["diagnosis"]


def test_a_file_that_starts_programs_in_a_part_is_told_that(check):
    line = "        import subprocess; subprocess.run(['true'])\n"
    at = "class RocLMRMSNorm(nn.Module):\n    def __init__(self, hidden_size, eps=1e-6):\n"
    assert at in GOOD
    report = check(GOOD.replace(at, at + line))
    assert report["diagnosis"]["component"] == "file"
    assert "starting a program" in report["diagnosis"]["hint"]
    assert "RMSNorm could not be checked" not in " ".join(c["hint"] for c in failed(report).values())


def test_a_copy_of_the_process_answers_nothing(check):
    report = check(f"import ctypes\nctypes.CDLL(None).fork()\n{GOOD}")
    assert set(failed(report)) == {"file: touches nothing"}
    assert "starting a process" in report["diagnosis"]["hint"]


@pytest.mark.parametrize("leave", ["import os; os._exit(0)", "raise SystemExit(0)"])
def test_leaving_early_costs_its_check(check, leave):
    report = check(edited((REPEAT_KV, f"{REPEAT_KV}    if n_rep == 1:\n        {leave}\n")))
    assert set(failed(report)) >= {"GQA: repeat_kv once"}
    assert any(
        w in failed(report)["GQA: repeat_kv once"]["hint"] for w in ("ended itself with exit code 0", "sys.exit(0)")
    )


def test_what_is_left_for_the_end_never_runs(check, tmp_path):
    report = check(f"{GOOD}\nimport atexit\natexit.register(lambda: open('late', 'w'))\n")
    assert report["passed"], failed(report)


@pytest.mark.slow
def test_the_full_model_at_import_is_told_with_the_limit(check):
    report = check(f"{GOOD}\nmodel = create_roclm_model()\n", seconds=60)
    assert "more memory than the limit of 2048 MB (--memory-mb)" in report["diagnosis"]["hint"]
