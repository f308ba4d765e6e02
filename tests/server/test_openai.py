"""OpenAI's own client against a real server process: every answer and every chunk is parsed by its typed models."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

openai = pytest.importorskip("openai")
from pydantic import BaseModel, Field  # noqa: E402

from roclab import lm  # noqa: E402
from roclab.lm.generate import complete  # noqa: E402
from tests.server.conftest import MODEL  # noqa: E402

QUESTIONS = [f"Name {n} things that {what}." for n in (2, 3) for what in ("fly", "swim", "burn", "melt")]
WEATHER = {
    "type": "object", "required": ["city", "unit"], "additionalProperties": False,
    "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
}  # fmt: skip
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "A city's weather", "parameters": WEATHER},
}


def ask(client, text, **more):
    more = {"temperature": 0, "max_tokens": 24, **more}
    return client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": text}], **more)


@pytest.fixture(scope="module")
def alone(smollm_path):
    """The greedy answers, asked one after the other of the engine itself."""
    runner, tokenizer = lm.load(MODEL)
    prompts = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in QUESTIONS]
    params = lm.SamplingParams(max_new_tokens=24)
    return [complete(runner, tokenizer, [prompt], params)[0].text for prompt in prompts]


def test_greedy_answers_do_not_depend_on_the_neighbours(client, alone):
    """Asked one by one, all at once and again with a warm cache, streamed and whole: the engine's own answers."""

    def streamed(text):
        chunks = ask(client, text, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        assert list(pool.map(streamed, QUESTIONS)) == alone
        assert [a.choices[0].message.content for a in pool.map(lambda q: ask(client, q), QUESTIONS)] == alone
    assert [ask(client, text).choices[0].message.content for text in QUESTIONS] == alone


def test_a_seed_gives_the_same_text_and_n_answers_differ(client):
    drawn = ask(client, QUESTIONS[0], temperature=1, seed=5, n=3)
    again = ask(client, QUESTIONS[0], temperature=1, seed=5, n=3)
    texts = [choice.message.content for choice in drawn.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) == 3
    assert ask(client, QUESTIONS[0], temperature=1, seed=6).choices[0].message.content == texts[1]


def test_usage_logprobs_and_stop(client):
    found = ask(client, QUESTIONS[0], logprobs=True, top_logprobs=2, max_tokens=8)
    (choice,) = found.choices
    assert found.usage.completion_tokens == len(choice.logprobs.content) == 8
    assert b"".join(bytes(token.bytes) for token in choice.logprobs.content).decode() == choice.message.content
    for token in choice.logprobs.content:
        assert token.top_logprobs[0].logprob == token.logprob <= 0  # greedy takes the likeliest
        assert len(token.top_logprobs) == 2
    text = choice.message.content
    cut = ask(client, QUESTIONS[0], stop=[text[6:9]], max_tokens=8).choices[0]
    assert (cut.message.content, cut.finish_reason) == (text[: text.index(text[6:9])], "stop")
    chunks = list(ask(client, QUESTIONS[0], stream=True, stream_options={"include_usage": True}, max_tokens=8))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.prompt_tokens == found.usage.prompt_tokens
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0  # the same prompt was here before


def test_penalties_and_bias_change_the_answer(client):
    tea = "Write the word tea ten times."
    plain = ask(client, tea).choices[0].message.content.lower()
    assert ask(client, tea, frequency_penalty=2.0).choices[0].message.content.lower().count("tea") < plain.count("tea")
    first = ask(client, QUESTIONS[0], logprobs=True, max_tokens=1).choices[0].logprobs.content[0].token
    tokenizer = lm.load(MODEL)[1]
    banned = {str(tokenizer.encode(first)[0]): -100}
    assert ask(client, QUESTIONS[0], logit_bias=banned, max_tokens=1).choices[0].message.content != first


def test_completions(client):
    found = client.completions.create(model=MODEL, prompt=["The sea", "Once"], max_tokens=6, temperature=0, echo=True)
    assert [choice.text.startswith(text) for choice, text in zip(found.choices, ("The sea", "Once"), strict=True)]
    chunks = client.completions.create(model=MODEL, prompt="The sea", max_tokens=6, temperature=0, stream=True)
    assert "The sea" + "".join(chunk.choices[0].text for chunk in chunks) == found.choices[0].text


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


def test_structured_output(client):
    messages = [{"role": "user", "content": "Invent a person."}]
    more = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 60}
    found = client.chat.completions.parse(response_format=Person, **more)
    assert isinstance(found.choices[0].message.parsed, Person)
    free = ask(client, "Invent a person.", response_format={"type": "json_object"}, max_tokens=80)
    if free.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(free.choices[0].message.content), dict)
    grammar = {"extra_body": {"grammar": 'root ::= "yes" | "no"'}}
    assert ask(client, "Is water wet?", **grammar).choices[0].message.content in ("yes", "no")
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError, match="not"):
        ask(client, "Hello", response_format=schema)


def test_tools(client):
    text = "What is the weather in Paris?"
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        more = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 60}
        (found,) = ask(client, text, **more).choices
        assert found.finish_reason == "tool_calls"
        (call,) = found.message.tool_calls
        assert set(json.loads(call.function.arguments)) == {"city", "unit"}
        chunks = [chunk.choices[0].delta for chunk in ask(client, text, stream=True, **more)]
        pieces = [delta.tool_calls[0].function.arguments for delta in chunks if delta.tool_calls]
        assert "".join(pieces) == call.function.arguments
        assert len(pieces) > 3
    messages = [
        {"role": "user", "content": text}, found.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]  # fmt: skip
    assert client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL], max_tokens=4).choices
    assert ask(client, text, tools=[TOOL], tool_choice="none").choices[0].message.tool_calls is None
    with pytest.raises(openai.BadRequestError, match="no tool 'other'"):
        ask(client, text, tools=[TOOL], tool_choice={"type": "function", "function": {"name": "other"}})


def test_responses(client):
    found = client.responses.create(model=MODEL, input="Hi", temperature=0, max_output_tokens=60)
    assert found.status == "completed"
    again = client.responses.create(model=MODEL, input="Hi", previous_response_id=found.id, max_output_tokens=4)
    assert again.usage.input_tokens > found.usage.input_tokens
    assert again.incomplete_details.reason == "max_output_tokens"
    assert client.responses.retrieve(found.id).output_text == found.output_text
    with client.responses.stream(model=MODEL, input="Hi", temperature=0, max_output_tokens=60) as events:
        numbers = [event.sequence_number for event in events]
        assert events.get_final_response().output_text == found.output_text
    assert numbers == list(range(len(numbers)))
    client.responses.delete(found.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(found.id)


def test_responses_call_tools_and_follow_schemas(client):
    tool = {"type": "function", **TOOL["function"]}
    more = {"model": MODEL, "tools": [tool], "temperature": 0, "max_output_tokens": 80}
    more |= {"input": "Weather in Paris?", "tool_choice": "required", "parallel_tool_calls": False}
    (call,) = client.responses.create(**more).output
    assert call.type == "function_call"
    assert set(json.loads(call.arguments)) == {"city", "unit"}
    with client.responses.stream(**more) as events:
        kinds = [event.type for event in events]
        assert events.get_final_response().output[0].arguments == call.arguments
    assert "response.function_call_arguments.done" in kinds
    parsed = client.responses.parse(model=MODEL, input="Invent a person.", text_format=Person, max_output_tokens=60)
    assert isinstance(parsed.output_parsed, Person)


def test_embeddings(client):
    found = client.embeddings.create(model=MODEL, input=["A cat sat.", "A kitten sits.", "Stocks fell."])
    cat, kitten, stocks = (item.embedding for item in found.data)
    assert sum(x * x for x in cat) == pytest.approx(1, abs=1e-4)
    assert sum(map(float.__mul__, cat, kitten)) > sum(map(float.__mul__, cat, stocks))


def test_models_and_errors_are_typed(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "roclab"
    with pytest.raises(openai.NotFoundError, match="'nope' is not served here"):
        client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model=MODEL, messages=[])
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(client, "x", temperature=-1)
    with pytest.raises(openai.BadRequestError, match="the model's context holds"):
        ask(client, "word " * 9000)
    with pytest.raises(openai.BadRequestError, match="logit_bias"):
        ask(client, "x", logit_bias={"1000000": 1})
