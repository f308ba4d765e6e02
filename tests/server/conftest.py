"""A real server process with SmolLM2's real weights, and the clients that people use."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("llguidance")

MODEL = "smollm2-135m"


@dataclass
class Server:
    url: str
    process: subprocess.Popen

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path) as answer:
            return answer.read().decode()

    def metric(self, name: str) -> float:
        found = re.search(rf"^vllm:{name}\{{[^}}]*\}} (\S+)$", self.get("/metrics"), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def wait_until_idle(self) -> None:
        """Until no request is being computed or waits."""
        deadline = time.monotonic() + 30
        while self.metric("num_requests_running") + self.metric("num_requests_waiting"):
            assert time.monotonic() < deadline, "a request goes on that nobody waits for"
            time.sleep(0.02)


def start(*options: str) -> Server:
    command = [sys.executable, "-m", "roclab", "lm", "serve", "--model", MODEL, "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seen = ""
    while not (address := re.search(r"http://\S+?:\d+", seen)):
        line = process.stderr.readline()
        assert line, f"the server ended: {seen}"
        seen += line
    server = Server(address[0], process)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            server.get("/health")
            return server
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            time.sleep(0.2)
    raise AssertionError("the model was not loaded in two minutes")


@pytest.fixture(scope="session")
def server(smollm_path) -> Iterator[Server]:
    running = start("--max-body-mb", "1")
    yield running
    running.process.terminate()
    assert running.process.wait(30) in (0, -signal.SIGTERM)
    assert running.process.stderr is not None
    assert "Traceback" not in running.process.stderr.read()


@pytest.fixture(scope="session")
def client(server):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="session")
def anthropic_client(server):
    anthropic = pytest.importorskip("anthropic")
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
