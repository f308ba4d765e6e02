"""What a server must bear for long: hundreds of schemas, thousands of odd requests, clients that leave, idle and slow
ones, and being told to end in the middle of an answer. Its memory, threads and slots come back."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.server.conftest import MODEL, start
from tests.server.test_limits import LONG, post

pytestmark = pytest.mark.slow
CHAT = "/v1/chat/completions"
PATTERNS = ["^[A-Z]{2}-[0-9]{3}$", "^(yes|no|maybe)$", "^a[bc]{1,4}d$"]


@pytest.fixture(scope="module")
def busy(smollm_path):
    running = start("--max-tokens", "400")
    yield running
    running.process.kill()
    assert running.process.stderr is not None
    assert "Traceback" not in running.process.stderr.read()


def status_of(server, name):
    """A number from /proc: VmRSS in kB, Threads, …"""
    text = Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8")
    return int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1])


def open_files(server):
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def connect(server, body=None, timeout=120):
    """A connection on which the chat, if there is one, has been asked."""
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port), timeout)
    if body is not None:
        data = json.dumps(body).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def schema(random, depth=2):
    """One of JSON Schema's usual forms, at random, of bounded size."""
    simple = [
        lambda: {"type": "boolean"},
        lambda: {"type": "integer", "minimum": random.randint(-50, 0), "maximum": random.randint(1, 900)},
        lambda: {"type": "number", "exclusiveMinimum": 0, "maximum": random.randint(1, 50)},
        lambda: {"type": "integer", "multipleOf": random.choice([2, 5]), "minimum": 0, "maximum": 100},
        lambda: {"enum": random.sample(["red", "green", "blue", 7, None, True, "a \"b\"", "é"], 3)},
        lambda: {"const": random.choice(["fixed", 12, False])},
        lambda: {"type": "string", "minLength": 1, "maxLength": random.randint(2, 12)},
        lambda: {"type": "string", "pattern": random.choice(PATTERNS)},
        lambda: {"type": "string", "format": random.choice(["date", "time", "uuid", "ipv4"])},
        lambda: {"type": ["integer", "null"], "minimum": 0, "maximum": 99},
    ]  # fmt: skip
    nested = [
        lambda: {
            "type": "array", "items": schema(random, depth - 1), "minItems": (low := random.randint(0, 2)),
            "maxItems": low + random.randint(0, 2),
        },
        lambda: {
            "type": "array", "prefixItems": [schema(random, 0), schema(random, 0)], "items": False, "minItems": 2,
        },
        lambda: {"anyOf": [schema(random, depth - 1), schema(random, depth - 1)]},
        lambda: an_object(random, min(depth - 1, 1)),
    ]  # fmt: skip
    return random.choice(simple if depth == 0 or random.random() < 0.4 else nested)()


def an_object(random, depth):
    names = random.sample(["name", "age", "kind", "tags", "place", "ok", "ünï", "a b"], random.randint(1, 4))
    found = {
        "type": "object",
        "properties": {name: schema(random, depth) for name in names},
        "required": names[: random.randint(1, len(names))],
        "additionalProperties": False,
    }
    if depth == 2 and random.random() < 0.3:  # the root: references begin there
        found["$defs"] = {"shared": schema(random, 0)}
        found["properties"][names[0]] = {"$ref": "#/$defs/shared"}
    return found


def held(kind):
    return {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": kind}}


def test_answers_follow_their_schemas_and_do_not_depend_on_the_neighbours(busy):
    jsonschema = pytest.importorskip("jsonschema")
    schemas = [an_object(random.Random(seed), 2) for seed in range(200)]

    def ask(number):
        body = {
            "model": MODEL, "messages": [{"role": "user", "content": f"Invent a record, number {number}."}],
            "response_format": held(schemas[number]), "max_tokens": 400, "temperature": number % 2, "seed": number,
        }  # fmt: skip
        status, answer, _ = post(busy, CHAT, body)
        assert status == 200, (schemas[number], answer)
        return answer["choices"][0]["message"]["content"], answer["choices"][0]["finish_reason"]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(200)))
    finished = 0
    for kind, (text, reason) in zip(schemas, together, strict=True):
        if reason == "stop":
            jsonschema.validate(json.loads(text), kind)
            finished += 1
    print(finished, "of 200 answers finished")
    assert finished >= 190
    assert [ask(number) for number in range(0, 200, 8)] == together[::8]


@pytest.mark.parametrize(
    "kind",
    [
        {"type": "object", "properties": {"a": {"not": {"type": "string"}}}},
        {"type": "array", "uniqueItems": True, "items": {"type": "integer"}},
        {"type": "string", "pattern": "(?=a)b"},
        {"type": "string", "minLength": 5, "maxLength": 2},
        {"$ref": "http://example.org/schema.json"},
        {"type": "object", "patternProperties": {"(": {}}},
    ],
)
def test_a_schema_that_cannot_be_honoured_is_refused_in_one_line(busy, kind):
    body = LONG | {"response_format": held(kind), "max_tokens": 50}
    status, answer, _ = post(busy, CHAT, body)
    assert status == 400, answer
    assert answer["error"]["param"].startswith("response_format")
    assert "\n" not in answer["error"]["message"]


HOOKS = f"""
import schemathesis

@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = "{MODEL}"
    return body
"""


def test_five_thousand_requests_made_from_the_document(tmp_path):
    pytest.importorskip("schemathesis")
    (tmp_path / "hooks.py").write_text(HOOKS, encoding="utf-8")
    server = start("--max-tokens", "4")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [
        Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/openapi.json", "--checks", checks,
        "--phases", "examples,coverage,fuzzing", "--max-examples", "250", "--continue-on-failure", "--seed", "1",
        "--request-timeout", "60", "--suppress-health-check", "all",
    ]  # fmt: skip
    try:
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": str(tmp_path / "hooks.py")}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    finally:
        server.process.terminate()
    assert run.returncode == 0, run.stdout[-5000:]
    made = int(re.search(r"(\d+) generated", run.stdout)[1])
    print(made, "requests")
    assert made >= 5000
    assert "Traceback" not in server.process.stderr.read()


def test_clients_that_go_away_leave_nothing_behind(busy):
    draw = random.Random(0)
    before = None
    for number in range(120):
        connection = connect(busy, LONG | {"stream": bool(number % 2), "seed": number, "temperature": 1})
        time.sleep(draw.choice([0, 0.01, 0.1, 0.3]) * draw.random())
        connection.close()
        if number == 19:  # warm by now
            busy.wait_until_idle()
            before = {name: status_of(busy, name) for name in ("Threads", "VmRSS")}
    busy.wait_until_idle()
    after = {name: status_of(busy, name) for name in ("Threads", "VmRSS")}
    print(before, after)
    assert after["Threads"] <= before["Threads"] + 32  # the pool in which prompts are encoded
    assert after["VmRSS"] < before["VmRSS"] + 600_000  # the prefix cache may fill
    assert post(busy, CHAT, LONG | {"max_tokens": 4})[0] == 200


def test_slow_and_odd_readers_hold_no_slot(busy):
    """Who reads nothing, who closes one direction, who goes on sending: each answer is computed and over."""
    slow = [connect(busy, LONG | {"stream": True}) for _ in range(8)]
    half = connect(busy, LONG | {"stream": True})
    half.shutdown(socket.SHUT_WR)
    talking = connect(busy, LONG | {"stream": True})
    talking.sendall(b"\r\n\r\nNOT HTTP\x00\xff" * 1000)
    begun = connect(busy)
    begun.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost:")  # and no more
    busy.wait_until_idle()
    assert post(busy, CHAT, LONG | {"max_tokens": 4})[0] == 200
    answer = b""
    while b"[DONE]" not in answer:  # all of it is there for whoever reads late
        piece = slow[0].recv(1 << 16)
        assert piece, answer[-200:]
        answer += piece
    for connection in [*slow, half, talking, begun]:
        connection.close()


def test_ten_thousand_idle_connections(busy):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 11_000:
        pytest.skip(f"this system allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    files, memory = open_files(busy), status_of(busy, "VmRSS")
    connections = [connect(busy) for _ in range(10_000)]
    try:
        deadline = time.monotonic() + 60
        while open_files(busy) < files + 10_000:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        print("kB a connection:", (status_of(busy, "VmRSS") - memory) / 10_000)
        assert post(busy, CHAT, LONG | {"max_tokens": 4})[0] == 200
    finally:
        for connection in connections:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    deadline = time.monotonic() + 60
    while open_files(busy) > files + 10:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_body_of_100_mb_is_refused_before_it_is_read(busy):
    memory = status_of(busy, "VmRSS")
    address = urlsplit(busy.url)
    for announced in ("Content-Length: 100000000", "Transfer-Encoding: chunked"):
        connection = connect(busy)
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n{announced}\r\n\r\n"
        )
        connection.sendall(head.encode())
        piece = b"x" * (1 << 20)
        sent = 0
        try:
            while sent < 100_000_000:
                connection.sendall(b"100000\r\n" + piece + b"\r\n" if "chunked" in announced else piece)
                sent += len(piece)
        except (ConnectionError, TimeoutError):
            pass  # it hung up, having answered
        assert sent < 100_000_000 or b" 413 " in connection.recv(1000)
        connection.close()
    assert status_of(busy, "VmRSS") < memory + 64_000
    assert post(busy, CHAT, LONG | {"max_tokens": 4})[0] == 200


def test_told_to_end_it_finishes_its_streams_and_a_new_one_gives_the_same_answers():
    body = LONG | {"max_tokens": 60, "temperature": 0}
    answers = []
    for _ in range(2):
        server = start()
        connection = connect(server, body | {"stream": True})
        answer = connection.recv(1 << 16)  # it has begun
        server.process.send_signal(signal.SIGTERM)
        while piece := connection.recv(1 << 16):
            answer += piece
        assert b"data: [DONE]" in answer
        assert server.process.wait(30) in (0, -signal.SIGTERM)
        assert "Traceback" not in server.process.stderr.read()
        events = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith(b"data: {")]
        answers.append("".join(event["choices"][0]["delta"].get("content", "") for event in events))
    assert answers[0] == answers[1]
    assert len(answers[0]) > 60


def test_answers_are_the_same_with_and_without_the_prefix_cache():
    answers = {}
    for megabytes in ("0", "512"):
        server = start("--prefix-cache-mb", megabytes)
        shared = "You are a careful assistant who answers in plain words. " * 20

        def ask(number, server=server, shared=shared):
            messages = [{"role": "system", "content": shared}, {"role": "user", "content": f"Tell me about {number}."}]
            body = {"model": MODEL, "messages": messages, "max_tokens": 40, "temperature": 0}
            answer = post(server, CHAT, body)[1]
            return answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(ask, range(16)))
        answers[megabytes] = [text for text, _ in found]
        assert any(cached for _, cached in found)  # running requests share in both
        server.process.terminate()
        server.process.wait(30)
    assert answers["0"] == answers["512"]
