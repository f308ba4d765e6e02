"""A server under load: tokens/s, seconds to the first token, and whether greedy answers depend on the neighbours.

    roclab lm serve --model smollm2-135m --port 8000 &
    python bench/lm_server.py --url http://127.0.0.1:8000 [--peer http://127.0.0.1:8080] [--clients 1,4,16,64]
    python bench/lm_server.py --url http://127.0.0.1:8000 --soak 120 --pid PID

Every client streams one chat after the other; a peer (llama.cpp's server, say) gets the same requests in turn. `--soak`
keeps 64 clients asking for so many seconds, each chat a new one, and prints the answers, the refusals (429), the errors
and the memory of the server's process (Linux). The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TOPICS = (
    "the sea",
    "a small robot",
    "old maps",
    "tea",
    "winter",
    "a lighthouse",
    "bees",
    "trains",
    "glass",
    "the moon",
)
ASKED = (
    "Write a short story about {topic} number {n}. Begin at once, use plain words, and tell what happens in the end."
)


class Client:
    """Streams chats, each over a connection of its own, with as little work as can be: it shares the server's cores."""

    def __init__(self, url: str, model: str, tokens: int):
        self.url, self.model, self.tokens = urlsplit(url), model, tokens

    async def ask(self, text: str) -> tuple[str, int, float]:
        """(answer, its tokens as the server counts them, seconds to the first). Raises RuntimeError for another status
        than 200."""
        body = json.dumps({
            "model": self.model, "messages": [{"role": "user", "content": text}], "temperature": 0,
            "max_tokens": self.tokens, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True,
        })  # fmt: skip
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self.url.netloc}\r\nContent-Type: application/json\r\n"
        begin, first, last, pieces = time.perf_counter(), 0.0, {}, []
        reader, writer = await asyncio.open_connection(self.url.hostname, self.url.port)
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        try:
            status = await reader.readline()
            if b" 200 " not in status:
                raise RuntimeError(f"{status!r}: {await reader.read(1000)!r}")
            while (line := await reader.readline()) != b"data: [DONE]\n":
                if not line:
                    raise RuntimeError("the server closed the connection")
                if line.startswith(b"data: {"):
                    last = json.loads(line[6:])
                    pieces += [choice["delta"].get("content") or "" for choice in last["choices"]]
                    first = first or (time.perf_counter() - begin if pieces and pieces[-1] else 0.0)
        finally:
            writer.close()
        return "".join(pieces), last["usage"]["completion_tokens"], first


async def load(url: str, model: str, clients: int, rounds: int, tokens: int, repeat: int) -> dict[str, Any]:
    """`rounds` requests of each client, all clients at once; other ones in every `repeat`, as servers remember them."""
    answers: dict[str, str] = {}
    firsts: list[float] = []
    total = 0
    client = Client(url, model, tokens)

    async def run(number: int) -> None:
        nonlocal total
        for n in range(rounds):
            text = ASKED.format(topic=TOPICS[number % len(TOPICS)], n=f"{repeat}, {number * rounds + n}")
            answers[text], count, first = await client.ask(text)
            firsts.append(first)
            total += count

    begin = time.perf_counter()
    await asyncio.gather(*map(run, range(clients)))
    seconds = time.perf_counter() - begin
    return {"tokens_per_second": total / seconds, "first_token": statistics.median(firsts), "answers": answers}


async def alone(url: str, model: str, texts: list[str], tokens: int) -> dict[str, str]:
    client = Client(url, model, tokens)
    return {text: (await client.ask(text))[0] for text in texts}


async def soak(url: str, model: str, clients: int, seconds: float, tokens: int, process: int) -> dict[str, Any]:
    client, counts, memory = Client(url, model, tokens), {"answers": 0, "refused": 0, "errors": 0}, []
    end = time.perf_counter() + seconds

    async def run(number: int) -> None:
        n = 0
        while time.perf_counter() < end:
            n += 1
            text = ASKED.format(topic=TOPICS[number % len(TOPICS)], n=f"{number}, {n}")
            try:
                await client.ask(text)
                counts["answers"] += 1
            except (RuntimeError, OSError) as error:
                refused = " 429 " in str(error)
                counts["refused" if refused else "errors"] += 1
                if not refused:
                    print(error)
                await asyncio.sleep(0.2)

    async def watch() -> None:
        while time.perf_counter() < end:
            status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
            memory.append(int(status.split("VmRSS:")[1].split()[0]) // 1000)
            print(f"{counts}, {memory[-1]} MB", flush=True)
            await asyncio.sleep(seconds / 12)

    await asyncio.gather(watch(), *map(run, range(clients)))
    return {**counts, "memory_mb": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--peer", help="Another server with the same API, measured in turn.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", default="1,4,16,64")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="Each figure is the median of as many.")
    parser.add_argument("--soak", type=float, help="Seconds of 64 clients, and no other measurement.")
    parser.add_argument("--pid", type=int, help="The server's process, for --soak.")
    asked = parser.parse_args()
    if asked.soak:
        print(json.dumps(asyncio.run(soak(asked.url, asked.model, 64, asked.soak, asked.tokens, asked.pid))))
        return
    urls = {"roclab": asked.url} | ({"peer": asked.peer} if asked.peer else {})
    found: dict[str, Any] = {}
    for clients in map(int, asked.clients.split(",")):
        rounds = max(1, 16 // clients)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in urls}
        for repeat in range(asked.repeats):
            for name, url in urls.items():
                runs[name].append(asyncio.run(load(url, asked.model, clients, rounds, asked.tokens, repeat)))
        row: dict[str, Any] = {}
        for name, own in runs.items():
            row[name] = {key: statistics.median(r[key] for r in own) for key in ("tokens_per_second", "first_token")}
        answers = runs["roclab"][-1]["answers"]
        same = asyncio.run(alone(asked.url, asked.model, list(answers), asked.tokens))
        row["equal"] = [sum(same[text] == answer for text, answer in answers.items()), len(answers)]
        found[str(clients)] = row
        told = ", ".join(f"{n} {r['tokens_per_second']:.0f} tokens/s, first after {1000 * r['first_token']:.0f} ms"
                         for n, r in row.items() if n in urls)  # fmt: skip
        print(f"{clients:3d} clients: {told}; {row['equal'][0]} of {row['equal'][1]} answers as alone", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
