"""Rules that score answers, their intervals, and mistakes in them."""

from __future__ import annotations

import pytest

from roclab.core.exceptions import DataError
from roclab.course.study.scoring import BEGINNING, score, validate_checks

PYTHON = {"python": {"defines": ["f"], "uses": ["Return", "If|IfExp"]}}
CASES = [
    ({"regex": "(?i)paris"}, "It is PARIS.", True),
    ({"regex": "Au"}, "au", False),
    ({"absent": "[a-z]"}, "GREEN", True),
    ({"absent": "[a-z]"}, "Green", False),
    ({"number": 1025}, "348 + 677 = 1,025.", True),
    ({"number": 42}, "42 is not 43", False),
    ({"number": 42}, "forty-two", False),
    ({"number": -1.5}, "x = -1.5", True),
    ({"choice": ["yes", "no"], "answer": "no"}, "No. Nothing is known.", True),
    ({"choice": ["yes", "no"], "answer": "no"}, "Yes and no.", False),
    ({"lines": [3, 3]}, "a\n\nb\nc\n", True),
    ({"lines": [1, 2]}, "a\nb\nc", False),
    ({"words": [1, 3]}, "it's a well-known", True),
    ({"words": [1, 3]}, "one two three four", False),
    ({"sentences": [2, 2]}, 'He said "Go!" Then 3.5 km passed', True),
    ({"sentences": [1, 1]}, "One. Two.", False),
    ({"json": {"a": 1}}, 'Here:\n```json\n{"a": 1}\n```\nThat is it.', True),
    ({"json": {"a": 1}}, '{"a": 1, "b": 2}', False),
    ({"json": {"a": 1}}, "{'a': 1}", False),
    ({"json": {"a": 1}}, "[" * 5000, False),
    (PYTHON, "```python\ndef f(x):\n    return 1 if x else 2\n```", True),
    (PYTHON, "def f(x):\n    return x", False),
    (PYTHON, "def f(x) return x", False),
    (PYTHON, "```\ndef f(x):\n    return 1 if x else 2", True),  # a block that the token limit left open
    (PYTHON, "(" * 500, False),
    ({"declines": True}, "I don't have that information.", True),
    ({"declines": True}, "I’m sorry, I can’t see your car.", True),
    ({"declines": True}, "Could you please attach it?", True),
    ({"declines": True}, "You had toast.", False),
    ({"declines": True}, "You had toast. " * BEGINNING + "I don't know.", False),
    ({"declines": False}, "I cannot know.", False),
]


@pytest.mark.parametrize(("check", "answer", "passes"), CASES)
def test_a_rule(check, answer, passes):
    validate_checks([check], "here")
    passed, reasons = score([check], answer)
    assert passed is passes
    assert len(reasons) == (not passes)


def test_all_checks_must_hold_and_none_means_not_scored():
    assert score([{"regex": "a"}, {"regex": "b"}], "a") == (False, ["/b/ is not found"])
    assert score([], "anything") == (None, [])


def test_code_is_parsed_and_never_run(tmp_path):
    target = tmp_path / "ran"
    code = f"open({str(target)!r}, 'w')\ndef f(x):\n    return 1 if x else 2"
    assert score([PYTHON], code)[0] is True
    assert not target.exists()


@pytest.mark.parametrize(
    "checks",
    [
        "regex", [1], [{}], [{"regx": "a"}], [{"regex": "("}], [{"regex": 1}], [{"number": "1"}], [{"number": True}],
        [{"lines": 3}], [{"lines": [3]}], [{"lines": [4, 3]}], [{"words": [1, 2.5]}], [{"choice": ["a", "b"]}],
        [{"choice": ["a", 1], "answer": "a"}], [{"python": {"runs": []}}], [{"python": {"uses": "For"}}],
        [{"regex": "a", "absent": "b"}], [{"declines": 1}],
    ],
)  # fmt: skip
def test_a_mistake_in_the_checks_is_named(checks):
    with pytest.raises(DataError, match="question 7"):
        validate_checks(checks, "question 7")
