"""What the fields of all requests have in common."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, model_validator

T = TypeVar("T")

Many = Annotated[list[T], Field(fail_fast=True)]
"""A list that is refused at its first wrong item: collecting a million complaints would hold up everybody."""

StopString = Annotated[str, Field(min_length=1, max_length=1000)]
StopStrings = Annotated[list[StopString], Field(max_length=64, fail_fast=True)]


class Asked(BaseModel):
    """A part of a request. Clients send null for what they leave out."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given
