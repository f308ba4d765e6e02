"""Anthropic's own client against the same server."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest

anthropic = pytest.importorskip("anthropic")
from tests.server.conftest import MODEL  # noqa: E402
from tests.server.test_openai import WEATHER  # noqa: E402

HELLO = [{"role": "user", "content": "Hi"}]
GREEDY = {"extra_body": {"temperature": 0}}


def test_messages_whole_and_streamed(anthropic_client):
    found = anthropic_client.messages.create(model=MODEL, max_tokens=40, messages=HELLO, system="Be brief.", **GREEDY)
    assert found.stop_reason == "end_turn"
    assert found.content[0].text
    with anthropic_client.messages.stream(
        model=MODEL, max_tokens=40, messages=HELLO, system="Be brief.", **GREEDY
    ) as events:
        assert "".join(events.text_stream) == found.content[0].text
        assert events.get_final_message().usage.output_tokens == found.usage.output_tokens
    cut = anthropic_client.messages.create(model=MODEL, max_tokens=2, messages=HELLO)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 2)
    counted = anthropic_client.messages.count_tokens(model=MODEL, messages=HELLO)
    assert counted.input_tokens == cut.usage.input_tokens + cut.usage.cache_read_input_tokens


def test_a_stop_sequence_is_named(anthropic_client):
    text = anthropic_client.messages.create(model=MODEL, max_tokens=12, messages=HELLO, **GREEDY).content[0].text
    word = text.split()[1]
    found = anthropic_client.messages.create(
        model=MODEL, max_tokens=12, messages=HELLO, stop_sequences=[word], **GREEDY
    )
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", word)
    assert word not in found.content[0].text


def test_tools(anthropic_client):
    tool = {"name": "get_weather", "description": "A city's weather", "input_schema": WEATHER}
    more = {"model": MODEL, "max_tokens": 80, "tools": [tool], **GREEDY}
    asked = [{"role": "user", "content": "Weather in Paris?"}]
    found = anthropic_client.messages.create(
        messages=asked, tool_choice={"type": "tool", "name": "get_weather"}, **more
    )
    (use,) = found.content
    assert (found.stop_reason, set(use.input)) == ("tool_use", {"city", "unit"})
    with anthropic_client.messages.stream(
        messages=asked, tool_choice={"type": "any", "disable_parallel_tool_use": True}, **more
    ) as events:
        assert events.get_final_message().content[0].input == use.input
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
    used = {"type": "tool_use", "id": use.id, "name": use.name, "input": use.input}
    history = [*asked, {"role": "assistant", "content": [used]}, {"role": "user", "content": [result]}]
    assert anthropic_client.messages.create(messages=history, **more).content[0].text


def test_errors_have_its_shape(anthropic_client):
    with pytest.raises(anthropic.NotFoundError) as caught:
        anthropic_client.messages.create(model="nope", max_tokens=4, messages=HELLO)
    assert caught.value.body["error"]["type"] == "not_found_error"


def test_the_requests_of_the_docs_are_answered(server):
    text = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    asked = re.findall(r"^curl .*?http://127.0.0.1:8000(\S+)(.*?) -d '(\{.*?\n\})'", text, re.MULTILINE | re.DOTALL)
    assert [path for path, _, _ in asked] == ["/v1/chat/completions", "/v1/messages"]
    for path, options, body in asked:
        headers = dict(re.findall(r'-H "(.*?): (.*?)"', options))
        request = urllib.request.Request(server.url + path, body.encode(), headers)
        with urllib.request.urlopen(request) as answer:
            found = answer.read().decode()
        assert "data: [DONE]" in found if '"stream": true' in body else json.loads(found)["content"][0]["text"]
