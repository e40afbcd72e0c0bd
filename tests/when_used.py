"""Other people's clients of the API, which a process of tests imports when a test uses one: both take 1.6 s of CPU, and
of several processes few run such tests."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["anthropic", "openai"]


class _WhenUsed:
    """A module that is imported when something of it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith(("_", "pytest")):  # pytest looks for such of every name in a module of tests
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)


if TYPE_CHECKING:
    import anthropic
    import openai
else:
    anthropic, openai = _WhenUsed("anthropic"), _WhenUsed("openai")
