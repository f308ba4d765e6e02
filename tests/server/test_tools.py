"""Calls in the text of an answer, however it is cut into tokens; grammars for tokenizers with and without marks."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("llguidance")
from hypothesis import given, settings
from hypothesis import strategies as st

from roclab.lm.generate import TokenEvent
from roclab.server.chat import Message, encode
from roclab.server.errors import ApiError
from roclab.server.grammar import Grammars, tool_grammar
from roclab.server.text import Answer
from roclab.server.tools import Function, Style, Tool, ToolReader, in_system

HERMES = Style("<tool_call>\n", "arguments", "}\n</tool_call>", False)
LLAMA = Style("", "parameters", "}", True)
FUNCTIONS = [
    Function(name="add", parameters={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
    Function(name="none"),
]


class NoMarks:
    control: dict[str, int] = {}  # noqa: RUF012


def read(style, pieces):
    """(text, [(name, arguments)]) that a reader gains from the pieces, checked against what it keeps."""
    reader, text, calls = ToolReader(style, NoMarks()), "", []
    for number, piece in enumerate(pieces):
        for gained in reader.feed(0, piece, final=number == len(pieces) - 1):
            text += gained.text
            if gained.call is not None:
                calls.append([gained.call.name, ""])
            if gained.arguments:
                calls[-1][1] += gained.arguments
    assert calls == [[call.name, call.arguments] for call in reader.calls]
    return text, calls


def written(style, name, arguments):
    return f"{style.begin}{style.head(name)}{arguments}{style.end}"


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([HERMES, LLAMA]),
    st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(alphabet='{}[]"\\<>ab', max_size=8))),
    st.data(),
)
def test_a_call_is_read_however_it_is_cut(style, arguments, data):
    given_json = json.dumps(arguments)
    whole = "Well. " + written(style, "add", given_json)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=12)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert read(style, pieces) == ("Well. ", [["add", given_json]])


def test_several_calls_and_none():
    both = written(HERMES, "add", '{"a": 1}') + "\n" + written(HERMES, "none", "{}")
    assert read(HERMES, list(both))[1] == [["add", '{"a": 1}'], ["none", "{}"]]
    assert read(HERMES, ["a < b", " <tool", "box"]) == ("a < b <toolbox", [])


@pytest.mark.parametrize(("must", "several"), [(True, True), (True, False), (False, True), (False, False)])
def test_grammars_take_their_own_calls(qwen, must, several):
    """Qwen3's marks are tokens of their own: the grammar names them, and takes what the template would show."""
    style = Style.of(qwen)
    assert style.in_template
    assert style.begin.strip() in qwen.control
    grammars = Grammars(qwen, qwen.vocab_size)
    matcher = grammars.compile("lark", tool_grammar(style, qwen, FUNCTIONS, must, several), "tools")
    open_id, close_id = qwen.control["<tool_call>"], qwen.control["</tool_call>"]
    inside = qwen.encode('\n{"name": "add", "arguments": {"a": 12}}\n')
    for token_id in (open_id, *inside, close_id):
        assert matcher.consume_token(token_id), qwen.decode([token_id], control=True)
    assert matcher.is_accepting()
    wrong = grammars.compile("lark", tool_grammar(style, qwen, FUNCTIONS, True, several), "tools")
    ids = [open_id, *qwen.encode('\n{"name": "sub"')]
    assert not all(wrong.consume_token(token_id) for token_id in ids)


def test_what_cannot_be_honoured_is_refused(qwen):
    grammars = Grammars(qwen, qwen.vocab_size)
    for kind, text in (("json_schema", '{"not": {}}'), ("json_schema", '{"type": "strng"}'), ("regex", "(a"),
                       ("gbnf", "root ::= nothing"), ("json_schema", '{"$ref": "http://example.org/x"}')):  # fmt: skip
        with pytest.raises(ApiError) as caught:
            grammars.compile(kind, text, "here")
        assert caught.value.message.startswith("here: ")
        assert "\n" not in caught.value.message
    with pytest.raises(ApiError, match="characters"):
        grammars.compile("regex", "a" * 300_000, "here")


def test_a_template_without_tools_gets_them_in_the_system_message():
    tool = {"type": "function", "function": {"name": "add"}}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "2"},
    ]  # fmt: skip
    found = in_system(messages, [Tool.model_validate(tool)])
    assert [message["role"] for message in found] == ["system", "user", "assistant", "user"]
    assert found[0]["content"].startswith("Be brief.")
    assert '"name": "add"' in found[0]["content"]
    assert found[2]["content"] == '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert "2" in found[3]["content"]


def test_earlier_calls_without_tools_put_nothing_into_the_system_message():
    messages = [{"role": "user", "content": "1 + 1?"}, {"role": "tool", "content": "2"}]
    assert [message["role"] for message in in_system(messages, [])] == ["user", "user"]


def test_a_template_that_knows_tools_gets_earlier_calls_as_it_writes_them(qwen):
    """Also where no tool may be called now."""
    asked = [
        Message(role="user", content="1 + 1?"),
        Message.model_validate(
            {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}]}
        ),
        Message(role="tool", content="2"),
    ]
    ids = encode(qwen, asked)
    assert qwen.control["<tool_call>"] in ids
    assert "# Tools" not in qwen.decode(ids, control=True)


def test_a_call_that_a_stop_string_cuts_is_no_call():
    answer = Answer(ToolReader(HERMES, NoMarks()))
    answer.add(TokenEvent(0, 0, '<tool_call>\n{"name": "add", "arguments": {"a', finish_reason="stop"))
    assert answer.finish_reason == "stop"
    answer = Answer(ToolReader(HERMES, NoMarks()))
    answer.add(TokenEvent(0, 0, written(HERMES, "add", "{}"), finish_reason="stop"))
    assert answer.finish_reason == "tool_calls"
