"""`/tokenize` and `/detokenize`, as vLLM has them."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request as HttpRequest

from roclab.server.chat import Message, encode
from roclab.server.errors import ApiError
from roclab.server.fields import Asked, Many

router = APIRouter()


class TokenizeRequest(Asked):
    """A text, or a chat, which goes through the template."""

    model: str
    prompt: str | None = None
    messages: Many[Message] | None = Field(default=None, min_length=1)
    add_special_tokens: bool | None = None


class Tokens(BaseModel):
    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeRequest(Asked):
    model: str
    tokens: Many[int] = Field(max_length=1 << 20)


class Text(BaseModel):
    prompt: str


@router.post("/tokenize")
async def tokenize(asked: TokenizeRequest, http: HttpRequest) -> Tokens:
    if (asked.prompt is None) == (asked.messages is None):
        raise ApiError(400, "give a prompt or messages", "prompt")
    async with http.app.state.models.use(asked.model) as model:
        tokenizer = model.worker.tokenizer
        if asked.messages is not None:
            ids = await asyncio.to_thread(encode, tokenizer, asked.messages)
        else:
            ids = await asyncio.to_thread(tokenizer.encode, str(asked.prompt), bos=asked.add_special_tokens)
        return Tokens(tokens=ids, count=len(ids), max_model_len=model.worker.runner.config.max_position_embeddings)


@router.post("/detokenize")
async def detokenize(asked: DetokenizeRequest, http: HttpRequest) -> Text:
    async with http.app.state.models.use(asked.model) as model:
        size = model.worker.runner.config.vocab_size
        if not all(0 <= i < size for i in asked.tokens):
            raise ApiError(400, f"token ids lie between 0 and {size - 1}", "tokens")
        return Text(prompt=await asyncio.to_thread(model.worker.tokenizer.decode, asked.tokens, control=True))
