"""Prometheus metrics under the names that dashboards for vLLM read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from roclab.lm.engine.scheduler import Engine, Request

FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
EACH = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
WHOLE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts what was answered; what is going on is read from the engines when it is asked for."""

    def __init__(self, engines: Callable[[], dict[str, Engine]]):
        """`engines` gives those of the models that are loaded, by name."""
        self.engines, self.registry = engines, CollectorRegistry()
        label: dict[str, Any] = {"labelnames": ["model_name"], "registry": self.registry}
        self.prompt_tokens = Counter("vllm:prompt_tokens", "Tokens of prompts.", **label)
        self.generation_tokens = Counter("vllm:generation_tokens", "Tokens of answers.", **label)
        self.queries = Counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", **label)
        self.hits = Counter("vllm:prefix_cache_hits", "Prompt tokens that the prefix cache had.", **label)
        self.success = Counter(
            "vllm:request_success", "Requests answered.", ["model_name", "finished_reason"], registry=self.registry
        )
        self.first = Histogram("vllm:time_to_first_token_seconds", "From arrival.", buckets=FIRST, **label)
        self.each = Histogram("vllm:inter_token_latency_seconds", "Mean of a request.", buckets=EACH, **label)
        self.whole = Histogram("vllm:e2e_request_latency_seconds", "From arrival to end.", buckets=WHOLE, **label)
        self.queue = Histogram("vllm:request_queue_time_seconds", "Before any work.", buckets=FIRST, **label)
        self.registry.register(self)

    def count(self, model: str, request: Request, reason: str) -> None:
        """A request that has ended."""
        times, new, now = request.times, request.new_tokens, time.perf_counter()
        self.prompt_tokens.labels(model).inc(len(request.prompt))
        self.generation_tokens.labels(model).inc(new)
        self.queries.labels(model).inc(len(request.prompt))
        self.hits.labels(model).inc(request.cached_tokens)
        self.success.labels(model, reason).inc()
        self.queue.labels(model).observe(times.queue_seconds)
        if times.first_token is None:
            return
        self.first.labels(model).observe(times.first_token - times.submitted)
        self.whole.labels(model).observe(now - times.submitted)
        if new > 1:
            self.each.labels(model).observe((now - times.first_token) / (new - 1))

    def collect(self) -> Iterator[Any]:
        """What is going on now."""
        running = GaugeMetricFamily("vllm:num_requests_running", "Requests in the batch.", labels=["model_name"])
        waiting = GaugeMetricFamily("vllm:num_requests_waiting", "Requests that wait.", labels=["model_name"])
        used = GaugeMetricFamily("vllm:kv_cache_usage_perc", "Share of the prefix cache in use.", labels=["model_name"])
        for name, engine in self.engines().items():
            running.add_metric([name], len(engine.running))
            waiting.add_metric([name], len(engine.waiting))
            size, bound = sum(s.bytes for s in list(engine.cache.idle)), engine.cache.max_bytes
            used.add_metric([name], size / bound if bound else 0.0)
        yield from (running, waiting, used)

    def text(self) -> bytes:
        return generate_latest(self.registry)
