"""Lines of RocLM as they stand in its file when the report is written: by name, never pasted."""

from __future__ import annotations

import ast
import textwrap
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from roclab.core.files import file_sha256

# A part of the report -> functions; behind a colon only the statements that assign these names, "return" among them.
PARTS = {
    "RMSNorm": ["RocLMRMSNorm.forward"],
    "SwiGLU": ["RocLMMLP.forward"],
    "GQA": ["repeat_kv", "RocLMAttention.attend:k,v,scores,attention_map,return"],
    "RoPE": [
        "rope_frequencies:exponents,angles",
        "RocLMRotaryEmbedding.forward:angles",
        "rotate_half",
        "apply_rotary_pos_emb",
    ],
    "mask": ["RocLMAttention.attend:mask,scores"],
    "layer": ["RocLMDecoderLayer.forward"],
}
Found = dict[str, Any]


def model_file() -> Path:
    """The file of RocLM, which is not imported for it."""
    spec = find_spec("roclab.lm.model")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def parts() -> dict[str, Any]:
    """The lines of every part: {"sha256" of the file, "parts": name → [{"name", "lines": [first, last], "text"}]}."""
    path = model_file()
    source = path.read_text("utf-8")
    return {
        "sha256": file_sha256(path),
        "parts": {part: [lines_of(source, name) for name in names] for part, names in PARTS.items()},
    }


def lines_of(source: str, name: str) -> Found:
    """The lines of a function, `Class.method` included, without its docstring; of `function:a,b` those statements of
    its body alone that assign a or b ("return": its last statement). Raises LookupError for a name that is not there.
    """
    path, _, wanted = name.partition(":")
    function = _find(_tree(source).body, path.split("."))
    body = function.body[1:] if ast.get_docstring(function, clean=False) else function.body
    if wanted:
        names = set(wanted.split(","))
        shown = [statement for statement in body if names & _assigned(statement)]
        spans = [(statement.lineno, statement.end_lineno or 0) for statement in shown]
    else:
        spans = [(function.lineno, _last_of_head(function)), (body[0].lineno, function.end_lineno or 0)]
    if not spans:
        raise LookupError(f"{path} assigns nothing of {wanted}")
    lines = source.splitlines()
    text = "\n".join("\n".join(lines[first - 1 : last]) for first, last in spans)
    return {"name": path, "lines": [spans[0][0], spans[-1][1]], "text": textwrap.dedent(text)}


@cache
def _tree(source: str) -> ast.Module:
    return ast.parse(source)


def _find(body: list[ast.stmt], path: list[str]) -> ast.FunctionDef:
    kinds = (ast.ClassDef, ast.FunctionDef)
    found = next((node for node in body if isinstance(node, kinds) and node.name == path[0]), None)
    if isinstance(found, ast.FunctionDef) and len(path) == 1:
        return found
    if isinstance(found, ast.ClassDef) and len(path) > 1:
        return _find(found.body, path[1:])
    raise LookupError(f"the model's file has no function {'.'.join(path)}")


def _assigned(statement: ast.stmt) -> set[str]:
    """Names and attributes that a statement assigns, in its branches too."""
    nodes = [node for node in ast.walk(statement) if isinstance(node, (ast.Name, ast.Attribute))]
    names = {n.id if isinstance(n, ast.Name) else n.attr for n in nodes if isinstance(n.ctx, ast.Store)}
    return names | ({"return"} if isinstance(statement, ast.Return) else set())


def _last_of_head(function: ast.FunctionDef) -> int:
    """The last line of a function's head: the one before its docstring or its first statement."""
    return function.body[0].lineno - 1
