"""`/v1/embeddings`: the mean of a text's last hidden states, of length 1.

The model was trained to continue texts, not to embed them: vectors of models made for that compare texts better.
"""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest

from roclab.server.errors import ApiError
from roclab.server.fields import Asked
from roclab.server.generation import Prompts, prompts_of, until_gone
from roclab.server.models import Model
from roclab.server.replies import EmbeddingList, described

router = APIRouter()
MOST = 256  # texts a request


class EmbeddingRequest(Asked):
    model: str
    input: Prompts = Field(description="Texts, or token ids.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


@router.post("/v1/embeddings", responses=described(EmbeddingList))
async def embeddings(asked: EmbeddingRequest, http: HttpRequest) -> dict[str, Any]:
    async with http.app.state.models.use(asked.model) as model:
        width = model.worker.runner.config.hidden_size
        texts = await asyncio.to_thread(prompts_of, asked.input, model.worker, "input", MOST)
        if asked.dimensions not in (None, width):
            raise ApiError(400, f"dimensions: the model's vectors have {width}", "dimensions")
        return await until_gone(http, embedded(asked, model, texts))


async def embedded(asked: EmbeddingRequest, model: Model, texts: list[list[int]]) -> dict[str, Any]:
    limits, data = model.settings, []
    if model.users > limits.max_running + limits.max_waiting:
        raise ApiError(429, "too many requests wait: try again in a moment", retry_after=1)
    deadline = time.monotonic() + limits.max_seconds
    for index, ids in enumerate(texts):
        async with model.embedding:  # one at a time: chats need the threads, too
            if time.monotonic() > deadline:
                raise ApiError(408, f"the request took more than {limits.max_seconds:g} seconds")
            vector = (await asyncio.to_thread(model.worker.hidden, ids)).mean(0)
        values = (vector / vector.norm()).numpy()
        shown = values.tolist() if asked.encoding_format == "float" else base64.b64encode(values.tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": shown})
    tokens = sum(map(len, texts))
    return {
        "object": "list", "data": data, "model": model.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }  # fmt: skip
