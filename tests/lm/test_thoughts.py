"""Thoughts that come in other ways than usual, histories that others wrote, and the day a conversation began."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from roclab.core.exceptions import RocLabError
from roclab.lm.conversation import Conversation
from roclab.lm.generate import complete, stream
from roclab.lm.settings import SamplingParams

from .build import CHAT_TEMPLATE
from .speaker import END, Speaker, ids_of, tokenizer

GREEDY = SamplingParams(max_new_tokens=30)
OPEN = CHAT_TEMPLATE.replace("assistant\n' }}", "assistant\n<think>\n' }}")
DATED = "{{ strftime_now('%d %b %Y') }} " + CHAT_TEMPLATE
KEPT = CHAT_TEMPLATE.replace(
    "+ message['content']", "+ message.get('reasoning_content', '-') + '|' + message['content']"
)


@pytest.mark.parametrize(
    ("spoken", "thinking", "text"),
    [
        (("secret", "</think>", "Paris"), "secret", "Paris"),  # nothing opened it
        (("\n", "<think>", "secret", "</think>", "Paris"), "secret", "Paris"),
        (("\n\n secret\n", "</think>", "\n\nPa", "</think>", "ris"), "secret", "Paris"),
        (("</think>", "Paris"), "", "Paris"),
        (("  \n\n", "<think>", "\n", "</think>", "\n\nParis"), "", "Paris"),
        (("x", "<think>", "no thought", "</think>", "y"), "", "xno thoughty"),  # too late to be one
        (("<think>", "a", "</think>", "b", "</think>", "c"), "a", "bc"),
    ],
)
def test_where_a_thought_ends(spoken, thinking, text):
    t = tokenizer()
    prompt = t.encode_chat([{"role": "user", "content": "q"}])
    result = complete(Speaker(ids_of(t, *spoken, END)), t, [prompt], GREEDY)[0]
    assert (result.thinking.strip(), result.text.strip()) == (thinking, text)
    conversation = Conversation(Speaker(ids_of(t, *spoken, END)), t, GREEDY)
    pieces = list(conversation.reply("q"))
    assert (conversation.last.thinking_content, conversation.last.content) == (thinking, text)
    assert conversation.turns[-1]["content"] == text
    assert conversation.turns[-1].get("reasoning_content", "") == thinking
    # Who reads along can tell: all "content" before "unannounced" was the thought.
    announced = pieces.index(("unannounced", "")) + 1 if ("unannounced", "") in pieces else 0
    assert "".join(piece for part, piece in pieces[announced:] if part == "content").strip() == text


def test_a_thought_that_a_stop_string_might_have_begun_in_is_whole():
    t = tokenizer()
    reply = ids_of(t, "secret st", "</think>", "Paris stop it", END)
    params = SamplingParams(max_new_tokens=30, stop=(" stop",))
    events = list(stream(Speaker(reply), t, [t.encode("q")], params))
    result = complete(Speaker(reply), t, [t.encode("q")], params)[0]
    assert (result.thinking, result.text, result.finish_reason) == ("secret st", "Paris", "stop")
    assert [event.was_thinking for event in events].count(True) == 1


def test_an_open_thought_cut_by_the_limit_is_no_answer():
    t = tokenizer(OPEN)
    prompt = t.encode_chat([{"role": "user", "content": "q"}])
    result = complete(Speaker(ids_of(t, "a long secret")), t, [prompt], SamplingParams(max_new_tokens=5))[0]
    assert (result.thinking, result.text, result.finish_reason) == ("a lon", "", "length")


def taken_up(saved, template=KEPT) -> Conversation:
    conversation = Conversation(Speaker([2]), tokenizer(template))
    conversation.load(json.loads(json.dumps(saved)), "x.json")
    return conversation


@pytest.mark.parametrize(
    "turn",
    [
        {"content": "ho", "reasoning_content": "secret"},
        {"content": "ho", "reasoning": "secret"},
        {"content": "ho", "thinking": "secret", "tool_calls": None, "annotations": []},
        {"content": "<think>\nsecret\n</think>\n\nho"},
        {"content": "secret\n</think>\n\nho"},  # the template had written <think>
        {"content": [{"type": "text", "text": "\n<think>secret</think>ho"}], "refusal": None},
    ],
)
def test_a_thought_in_a_history_is_one_however_it_is_written(turn):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", **turn}]
    assert taken_up({"messages": messages}).turns == [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "reasoning_content": "secret"},
    ]  # fmt: skip


def test_a_turn_may_be_a_thought_alone():
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "reasoning": "secret"}]
    assert taken_up(messages).turns[1] == {"role": "assistant", "content": "", "reasoning_content": "secret"}


def test_tags_that_a_user_wrote_or_that_stand_later_stay_text():
    messages = [
        {"role": "user", "content": "<think>x</think>y"},
        {"role": "assistant", "content": "a <think>b</think>"},
        {"role": "assistant", "content": "It ends with </think> then."},
    ]
    assert taken_up({"messages": messages}).turns == messages
    cut = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>never ended"}]
    assert taken_up({"messages": cut}).turns[1] == {
        "role": "assistant", "content": "", "reasoning_content": "never ended",
    }  # fmt: skip


@pytest.mark.parametrize("role", ["system", "developer"])
def test_openai_s_format_has_its_system_message_among_the_others(role):
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    messages = [{"role": role, "content": "Be brief."}, *talk]
    for saved in (messages, {"messages": messages}, {"model": "m", "messages": messages, "thinking": None}):
        conversation = taken_up(saved)
        assert (conversation.system, conversation.turns) == ("Be brief.", talk)
    chosen = Conversation(Speaker([2]), tokenizer(), system="My own.")
    chosen.load({"messages": messages}, "x.json")
    assert chosen.system == "My own."


@pytest.mark.parametrize(
    ("saved", "why"),
    [
        ("text", "no list of messages"),
        (
            [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
            "message 2 is one more system message",
        ),
        ({"system": "a", "messages": [{"role": "system", "content": "b"}]}, "one more system message"),
        ([{"role": "tool", "content": "4"}], "message 1 has the role 'tool'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "message 1 holds something else than text"),
        (
            [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}],
            "message 1: tool_calls cannot be taken up",
        ),
        ([{"role": "assistant", "content": None}], "message 1 has no content"),
        ({"messages": [], "began": "yesterday"}, "yesterday"),
    ],
)
def test_what_cannot_be_taken_up_is_said(saved, why):
    with pytest.raises(RocLabError, match=r"x\.json: not a saved conversation") as refused:
        taken_up(saved)
    assert why in str(refused.value)


def test_the_day_a_conversation_began_is_kept_with_it():
    conversation = Conversation(Speaker([2]), tokenizer(DATED), GREEDY)
    conversation.began = datetime(2024, 2, 29, 23, 59)
    question = [{"role": "user", "content": "q"}]
    before = conversation.prompt_ids(question)
    assert conversation.tokenizer.decode(before).startswith("29 Feb 2024 ")
    list(conversation.reply("q"))
    saved = conversation.to_dict()
    assert saved["began"] == "2024-02-29T23:59:00"
    again = taken_up(saved, DATED)
    assert again.prompt_ids([]) == conversation.prompt_ids([])
    again.reset()  # a new conversation begins today
    assert again.began.date() == datetime.now().date()
    assert "began" not in Conversation(Speaker([2]), tokenizer()).to_dict()  # the template does not ask
