"""Models by name, loaded when they are first asked for, within a bound of memory: the one used longest ago goes."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from roclab.core.exceptions import RocLabError
from roclab.lm.loading import load
from roclab.lm.settings import LoadOptions
from roclab.server.errors import ApiError
from roclab.server.generation import Call
from roclab.server.grammar import Grammars
from roclab.server.metrics import Metrics
from roclab.server.settings import ServerSettings
from roclab.server.worker import Worker

logger = logging.getLogger(__name__)


class Model:
    """A loaded model. `users` count the calls that are being answered: it is not unloaded meanwhile."""

    def __init__(self, name: str, worker: Worker, metrics: Metrics, settings: ServerSettings):
        self.name, self.worker, self.metrics, self.settings = name, worker, metrics, settings
        self.grammars = Grammars(worker.tokenizer, worker.runner.config.vocab_size)
        self.users, self.used = 0, time.monotonic()
        self.embedding = asyncio.Semaphore(1)

    def call(self) -> Call:
        """A new call of this model, under the server's limits."""
        return Call(self.worker, self.settings, partial(self.metrics.count, self.name))

    @property
    def megabytes(self) -> float:
        """Of weights."""
        return self.worker.runner.weight_bytes / 1e6

    def hold(self) -> None:
        self.users += 1
        self.used = time.monotonic()

    def release(self) -> None:
        self.users -= 1


class Models:
    """All models that the server may answer with. `ready`: the first one has been loaded."""

    def __init__(self, names: Sequence[str], options: LoadOptions, settings: ServerSettings):
        self.names, self.options, self.settings = list(dict.fromkeys(names)), options, settings
        self.loaded: dict[str, Model] = {}
        self.metrics = Metrics(lambda: {name: model.worker.engine for name, model in self.loaded.items()})
        self.turn = threading.Lock()  # one step at a time: two models beside each other would share the same cores
        self.created, self.ready, self.failed = int(time.time()), False, ""
        self._loading = asyncio.Lock()

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Model]:
        """The model called `name`, loaded if it is not, and kept until the context is left. Raises ApiError."""
        if name not in self.names:
            raise ApiError(404, f"model {name!r} is not served here; these are: {', '.join(self.names)}", "model")
        model = await self.get(name)
        model.hold()
        try:
            yield model
        finally:
            model.release()

    async def get(self, name: str) -> Model:
        if name in self.loaded:  # it need not wait until another is loaded
            return self.loaded[name]
        async with self._loading:
            if name not in self.loaded:
                try:
                    self.loaded[name] = await asyncio.to_thread(self._load, name)
                except RocLabError as error:
                    raise ApiError(503, f"model {name!r} cannot be loaded: {error}", "model") from None
                self._make_room(name)
            self.ready = True
            return self.loaded[name]

    def _load(self, name: str) -> Model:
        begin, options = time.perf_counter(), self.options
        runner, tokenizer = load(name, **vars(options))
        gc.collect()
        gc.freeze()  # a full collection over torch's objects would hold up every stream by 0.16 s (docs/log.md)
        worker = Worker(
            runner, tokenizer, max_running=self.settings.max_running, max_waiting=self.settings.max_waiting,
            cache_bytes=self.settings.prefix_cache_mb << 20, turn=self.turn,
        )  # fmt: skip
        logger.info("%s loaded in %.1f s (engine %s)", name, time.perf_counter() - begin, runner.name)
        return Model(name, worker, self.metrics, self.settings)

    def _make_room(self, keep: str) -> None:
        bound = self.settings.models_mb
        while bound and sum(model.megabytes for model in self.loaded.values()) > bound:
            idle = [model for name, model in self.loaded.items() if name != keep and not model.users]
            if not idle:
                return
            oldest = min(idle, key=lambda model: model.used)
            del self.loaded[oldest.name]
            oldest.worker.close()
            logger.info("%s unloaded", oldest.name)

    def close(self) -> None:
        for model in self.loaded.values():
            model.worker.close()
