"""The settings of /set: how answers are sampled and shown. Knows no terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, get_type_hints

from msgspec import Struct
from msgspec.structs import replace

from dllama_zmq.cli.flag_kinds import MAX
from dllama_zmq.errors import RequestError, UsageError
from dllama_zmq.sampling import Sampling
from dllama_zmq.stop_strings import check_stop

_OTHER_NAMES = {
    "temp": "temperature",
    "topp": "top_p",
    "topk": "top_k",
    "typical": "typical_p",
    "repeat_penalty": "repetition_penalty",
    "steps": "max_tokens",
    "n": "max_tokens",
    "num_predict": "max_tokens",
    "stats": "verbose",
    "thinking": "think",
}
"""Flags of `generate`, and names of ollama."""
_SAMPLING = [name for name in Sampling.__struct_fields__ if name not in ("logit_bias", "logprobs")]
_TYPES = get_type_hints(Sampling)
_SWITCHES = {"on": True, "off": False, "true": True, "false": False, "yes": True, "no": False, "": True}


class Settings(Struct, frozen=True):
    """sampling, max_tokens, stop: as in a request. think: whether the model thinks first; None: the template's default.
    verbose: print tokens/s after each answer."""

    sampling: Sampling
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    think: bool | None = None
    verbose: bool = False

    def variables(self) -> dict[str, Any]:
        """The template variables for these settings, under the names in the templates of Qwen3, DeepSeek and others."""
        return {} if self.think is None else {"enable_thinking": self.think}

    def shown(self) -> Mapping[str, str]:
        """Each setting by name, as it would be typed."""
        of_sampling = {name: getattr(self.sampling, name) for name in _SAMPLING}
        words = {name: "random" if value is None else f"{value:g}" for name, value in of_sampling.items()}
        words["seed"] = "random" if self.sampling.seed is None else str(self.sampling.seed)
        words["max_tokens"] = "no limit" if self.max_tokens is None else str(self.max_tokens)
        words["stop"] = shlex.join(self.stop) if self.stop else "off"
        words["think"] = "as the template says" if self.think is None else _switch(self.think)
        words["verbose"] = _switch(self.verbose)
        return words

    def changed(self, name: str, value: str) -> Settings:
        """A copy with `name` set to `value`. Raises UsageError with what is expected."""
        name = name.lower().replace("-", "_")
        name = _OTHER_NAMES.get(name, name)
        if name in _SAMPLING:
            return replace(self, sampling=_sampled(self.sampling, name, value))
        if name == "max_tokens":
            return replace(self, max_tokens=_limit(value))
        if name == "stop":
            return replace(self, stop=_stops(value))
        if name in ("think", "verbose"):
            if (on := _SWITCHES.get(value.lower())) is None:
                raise UsageError(f"{name} is {value!r}; expected on or off")
            return replace(self, think=on) if name == "think" else replace(self, verbose=on)
        raise UsageError(f"there is no setting {name!r}; /set lists them")


NAMES = (*_SAMPLING, "max_tokens", "stop", "think", "verbose")


def _switch(on: bool) -> str:
    return "on" if on else "off"


def _limit(value: str) -> int | None:
    if value.lower() in ("-1", "off"):
        return None
    try:
        n_tokens = int(value)
    except ValueError:
        n_tokens = 0
    if not 1 <= n_tokens <= MAX:
        raise UsageError(f"max_tokens is {value!r}; expected a number of tokens, or -1 for no limit")
    return n_tokens


def _stops(value: str) -> tuple[str, ...]:
    try:
        stops = () if value.lower() == "off" else tuple(shlex.split(value))
        check_stop(stops)
    except (ValueError, RequestError) as error:  # ValueError: a quote that is not closed
        raise UsageError(f"stop: {error}") from None
    if not stops and value.lower() != "off":
        raise UsageError("stop: give a text, or several in quotes; /set stop off removes them")
    return stops


def _sampled(sampling: Sampling, name: str, value: str) -> Sampling:
    is_whole = _TYPES[name] in (int, int | None)
    number: float | None = None
    if name != "seed" or value.lower() not in ("-1", "random", "off"):
        try:
            number = int(value) if is_whole else float(value)
        except ValueError:
            expected = "a whole number" if is_whole else "a number"
            raise UsageError(f"{name} is {value!r}; expected {expected}") from None
    changed = replace(sampling, **{name: number})
    try:
        changed.check()
    except RequestError as error:
        raise UsageError(str(error)) from None
    return changed
