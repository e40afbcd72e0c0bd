"""What every client asks."""

from __future__ import annotations

from typing import Any, Literal

from integration.api import WEATHER
from pydantic import BaseModel, Field

MESSAGES: Any = [{"role": "user", "content": "Is it cold in Oslo?"}]
TOOLS: Any = [{"type": "function", "function": WEATHER}]
NO_THINKING: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
HOT: dict[str, Any] = {"temperature": 1.5, "seed": 3, "max_tokens": 400}
"""A random model under a grammar ends soon if it is not greedy."""
DIM = 64
"""Of the model: how long its embeddings are."""


class City(BaseModel):
    city: Literal["Oslo", "Rome"]


class Person(BaseModel):
    name: str = Field(max_length=8)
    age: int = Field(ge=0, lt=200)


def is_call(name: str, arguments: Any) -> bool:
    """Whether a call keeps to the schema of `WEATHER`."""
    return bool(name == "weather" and set(arguments) == {"city"} and arguments["city"] in ("Oslo", "Rome"))
