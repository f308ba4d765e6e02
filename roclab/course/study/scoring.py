"""Rules that score an answer.

A question's `checks` is a list of objects, all of which must hold; an empty list: the answer is kept, not scored.

    {"regex": P}, {"absent": P}        the pattern is found, is not found (case counts unless (?i) stands in it)
    {"number": X}                      the last number of the answer is X
    {"choice": [A, B, …], "answer": A} of the choices, as whole words in any case, A is named and no other
    {"lines": [low, high]}             the number of lines that are not blank; likewise "words" and "sentences"
    {"json": {key: value, …}}          a JSON object with exactly these keys and values
    {"python": {"defines": […], "uses": […]}}   Python with functions or classes of these names and syntax of these
                                       kinds (names of `ast`; "If|For": one of them). The code is parsed, never run: a
                                       pass says that it is Python of the right form, not that it is right.
    {"declines": true}                 the answer's beginning says that it does not know, or asks for what is missing

A rule reads form and key words. It passes some wrong answers and fails some right ones; the transcripts show which.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from roclab.core.exceptions import DataError

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_DECLINES = re.compile(
    r"""\b(?:
      (?:do|does|did|would)(?:\ not|n['’]t)\ (?:actually\ |really\ |currently\ )?(?:know|have|see|recall|remember)
    | can(?:not|\ not|['’]t) | could(?:\ not|n['’]t) | unable | impossible
    | not\ (?:able|possible|sure|certain|aware)
    | (?:have|has|is|there['’]s)\ no\ (?:way|information|access|file|attachment|attached|record|memory)
    | not\ (?:yet\ )?(?:been\ )?(?:provided|given|attached|mentioned|specified|known|determined)
    | unknown | unpredictable | no\ one\ knows | nobody\ knows | need\ more\ (?:information|context|details)
    | (?:please|could\ you|can\ you)\ (?:please\ )?(?:provide|share|tell|give|attach|upload|send|let\ me\ know)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
BEGINNING = 250  # characters in which an answer declines; later in a long answer the words mean little
_ARGUMENT: dict[str, Any] = {
    "regex": str, "absent": str, "number": (int, float), "choice": list, "lines": list, "words": list,
    "sentences": list, "json": dict, "python": dict, "declines": bool,
}  # fmt: skip


def validate_checks(checks: Any, where: str) -> None:
    """Raises DataError that says what is wrong with a question's checks."""
    if not isinstance(checks, list):
        raise DataError(f"{where}: checks must be a list (an empty one: not scored)")
    for check in checks:
        kinds = [key for key in check if key != "answer"] if isinstance(check, dict) else []
        if len(kinds) != 1 or kinds[0] not in _ARGUMENT:
            raise DataError(f"{where}: a check is an object with one of {', '.join(_ARGUMENT)}: got {check}")
        kind, argument = kinds[0], check[kinds[0]]
        if not isinstance(argument, _ARGUMENT[kind]) or (isinstance(argument, bool) and kind != "declines"):
            raise DataError(f"{where}: the check {kind} has an argument of the wrong kind: {argument!r}")
        if kind in ("regex", "absent"):
            try:
                re.compile(argument)
            except re.error as error:
                raise DataError(f"{where}: {argument!r} is no regular expression: {error}") from None
        if kind in COUNTS and not (
            len(argument) == 2 and all(type(n) is int for n in argument) and argument[0] <= argument[1]
        ):
            raise DataError(f"{where}: {kind} takes [least, most]: got {argument}")
        if kind == "choice" and (check.get("answer") not in argument or not all(isinstance(a, str) for a in argument)):
            raise DataError(f"{where}: choice takes a list of words, and answer one of them: got {check}")
        if kind == "python" and not (
            set(argument) <= {"defines", "uses"}
            and all(isinstance(v, list) and all(isinstance(n, str) for n in v) for v in argument.values())
        ):
            raise DataError(f'{where}: python takes "defines" and "uses", lists of names: got {argument}')


def score(checks: Sequence[Mapping[str, Any]], answer: str) -> tuple[bool | None, list[str]]:
    """Whether the answer passes every check (None if there are none), and what each failed check found wrong."""
    reasons = [reason for check in checks if (reason := _fault(check, answer.strip()))]
    return (not reasons if checks else None), reasons


def _fault(check: Mapping[str, Any], answer: str) -> str | None:
    kind = next(key for key in check if key != "answer")
    argument = check[kind]
    if kind in ("regex", "absent"):
        found = re.search(argument, answer)
        if kind == "regex":
            return None if found else f"/{argument}/ is not found"
        return f"{found.group()!r} should not be there" if found else None
    if kind == "number":
        numbers = _NUMBER.findall(answer)
        if not numbers:
            return f"no number; {argument} is right"
        last = float(numbers[-1].replace(",", ""))
        return None if math.isclose(last, argument) else f"{numbers[-1]} is the last number; {argument} is right"
    if kind == "choice":
        named = [word for word in argument if re.search(rf"(?i)\b{re.escape(word)}\b", answer)]
        return None if named == [check["answer"]] else f"names {', '.join(named) or 'none'}; {check['answer']} is right"
    if kind in COUNTS:
        count = COUNTS[kind](answer)
        least, most = argument
        wanted = str(least) if least == most else f"{least}–{most}"
        return None if least <= count <= most else f"{kind}: {count}, asked are {wanted}"
    if kind == "json":
        return _json_fault(argument, answer)
    if kind == "python":
        return _python_fault(argument, answer)
    declines = bool(_DECLINES.search(answer[:BEGINNING]))
    return None if declines == argument else "declines" if declines else "claims to know"


def _sentences(text: str) -> int:
    """Ends of sentences: marks before a space or the end; a last one without its mark counts too."""
    ends = len(re.findall(r"[.!?]+[\"'”’)]*(?=\s|$)", text))
    return ends + bool(text and not re.search(r"[.!?]+[\"'”’)]*\s*$", text))


COUNTS = {
    "lines": lambda text: sum(1 for line in text.splitlines() if line.strip()),
    "words": lambda text: len(re.findall(r"\w+(?:['’-]\w+)*", text)),
    "sentences": _sentences,
}


def _code_block(answer: str) -> str:
    """The first fenced block of an answer, or all of it."""
    found = _FENCE.search(answer)
    return found.group(1) if found else answer


def _json_fault(wanted: Mapping[str, Any], answer: str) -> str | None:
    try:
        value = json.loads(_code_block(answer))
    except (ValueError, RecursionError):
        return "not valid JSON"
    return None if value == wanted else f"JSON with other content than {json.dumps(wanted, ensure_ascii=False)}"


def _python_fault(wanted: Mapping[str, Sequence[str]], answer: str) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a model's code: "invalid escape sequence" and the like
            nodes = list(ast.walk(ast.parse(_code_block(answer))))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"not valid Python ({getattr(error, 'msg', None) or type(error).__name__})"
    defined = {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    if missing := [name for name in wanted.get("defines", ()) if name not in defined]:
        return f"does not define {', '.join(missing)}"
    used = {type(n).__name__ for n in nodes}
    if missing := [names for names in wanted.get("uses", ()) if used.isdisjoint(names.split("|"))]:
        return f"holds no {', '.join(missing)}"
    return None
