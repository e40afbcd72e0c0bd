"""Turns the fields of an HTTP request into the front's Generate: sampling, stop strings, grammar, limits. Pure."""

from __future__ import annotations

import json
from typing import Any

from dllama_zmq.api_config import ApiLimits
from dllama_zmq.bus.client_messages import Generate
from dllama_zmq.bus.prompts import AnyPrompt
from dllama_zmq.gateway.problems import Problem
from dllama_zmq.gateway.requests import Options, StructuredOutputs
from dllama_zmq.grammar import Grammar
from dllama_zmq.sampling import Sampling
from dllama_zmq.stop_strings import MAX_STOP_CHARACTERS

TEMPERATURE, TOP_P = 0.8, 0.9
"""Defaults of requests: those of `dllama-zmq generate`."""

_MIN_TEMPERATURE = 0.001
_SEEDS = 1 << 62


def generate_message(
    options: Options, prompt: AnyPrompt, limits: ApiLimits, logprobs: int | None, max_tokens: int | None = None
) -> Generate:
    """The message for the front; its id is set when it is sent. Raises Problem or RequestError for values out of range.

    max_tokens: for requests with several names for it; -1 is no limit.
    """
    names = (max_tokens, options.max_tokens, options.n_predict)
    most = next((given for given in names if given is not None), None)
    n = 1 if options.n is None else options.n
    if n > limits.n:
        raise Problem(400, f"n is {n}; at most {limits.n} (api.limits.n)", "n")
    if most == -1:
        most = None
    if limits.max_tokens is not None:
        most = limits.max_tokens if most is None else min(most, limits.max_tokens)
    sampling = sampling_of(options, logprobs)
    sampling.check()
    grammar = grammar_of(options)
    if grammar is not None:
        grammar.check()
    ignore_eos = bool(options.ignore_eos)
    return Generate(1, prompt, most, sampling, ignore_eos, stops_of(options, limits), grammar=grammar, n=n)


def sampling_of(options: Options, logprobs: int | None) -> Sampling:
    """The sampling parameters. Values that mean "off" or "greedy" on other servers mean that here."""
    temperature = TEMPERATURE if options.temperature is None else options.temperature
    top_p = TOP_P if options.top_p is None else options.top_p
    penalty = options.repeat_penalty if options.repetition_penalty is None else options.repetition_penalty
    seed = options.seed
    biases = options.logit_bias or {}
    return Sampling(
        temperature=0.0 if 0 <= temperature < _MIN_TEMPERATURE else temperature,
        top_p=1e-9 if top_p == 0 else top_p,
        top_k=max(0, options.top_k or 0),
        seed=None if seed is None or seed == -1 else seed % _SEEDS,
        min_p=options.min_p or 0.0,
        typical_p=1.0 if options.typical_p is None else options.typical_p,
        repetition_penalty=1.0 if penalty is None else penalty,
        presence_penalty=options.presence_penalty or 0.0,
        frequency_penalty=options.frequency_penalty or 0.0,
        logit_bias=dict(biases),
        logprobs=logprobs,
    )


def stops_of(options: Options, limits: ApiLimits) -> list[str]:
    """The stop strings without empty ones. Raises Problem."""
    stop = [options.stop] if isinstance(options.stop, str) else options.stop or []
    stop = [text for text in stop if text]
    if len(stop) > limits.stop:
        raise Problem(400, f"{len(stop)} stop strings; at most {limits.stop} (api.limits.stop)", "stop")
    for text in stop:
        if len(text) > MAX_STOP_CHARACTERS:
            raise Problem(400, f"a stop string of {len(text)} characters; at most {MAX_STOP_CHARACTERS}", "stop")
    return stop


def grammar_of(options: Options) -> Grammar | None:
    """The grammar of the answer, under any of its names. Raises Problem if there are two."""
    found = [grammar for grammar in _grammars(options) if grammar is not None]
    if len(found) > 1:
        raise Problem(400, "an answer can have only one grammar; give one of response_format, grammar and json_schema")
    return found[0] if found else None


def _grammars(options: Options) -> list[Grammar | None]:
    structured = options.structured_outputs or StructuredOutputs()
    return [
        _of_format(options),
        _text("gbnf", options.grammar),
        _schema(options.json_schema),
        _schema(options.guided_json),
        _text("regex", options.guided_regex),
        _choice("guided_choice", options.guided_choice),
        _text("lark", options.guided_grammar),
        _schema(structured.json),
        _text("regex", structured.regex),
        _choice("structured_outputs.choice", structured.choice),
        _text("lark", structured.grammar),
        Grammar("json_object") if structured.json_object else None,
    ]


def _of_format(options: Options) -> Grammar | None:
    form = options.response_format
    if form is None or form.type == "text":
        return None
    schema = form.json_schema.schema if form.json_schema is not None else form.schema
    if form.type == "json_schema" and schema is None:
        raise Problem(400, "response_format.json_schema.schema is missing", "response_format")
    return Grammar("json_object") if schema is None else _schema(schema)


def _schema(schema: dict[str, Any] | str | bool | None) -> Grammar | None:
    if schema is None:
        return None
    return Grammar("json_schema", schema if isinstance(schema, str) else json.dumps(schema))


def _choice(name: str, texts: list[str] | None) -> Grammar | None:
    """A grammar of one of the texts. Raises Problem, with `name`, if there is none to choose."""
    if texts is None:
        return None
    if not texts or not all(texts):
        raise Problem(400, f"{name} must be a list of texts, none of them empty", name)
    return Grammar("lark", "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts))


def _text(kind: Any, text: str | None) -> Grammar | None:
    return Grammar(kind, text) if text else None
