"""The tools of a conversation: which tools the model may call, and the grammar that makes it call one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import structs, to_builtins

from dllama_zmq.bus.prompts import Chat
from dllama_zmq.chat import AnswerGrammars, may_think
from dllama_zmq.gateway.endpoint import Call
from dllama_zmq.gateway.problems import Problem
from dllama_zmq.gateway.requests import ChatRequest, NamedTool
from dllama_zmq.grammar import Grammar

_OF_JSON = ("json_object", "json_schema")


def offered(body: ChatRequest) -> list[dict[str, Any]]:
    """The tools to show the model, in the form of templates and parsers. Raises Problem."""
    tools = body.tools or []
    names = [tool.function.name for tool in tools]
    for name in names:
        if not name or len(name) > 128 or names.count(name) > 1:
            raise Problem(
                400, f"tools: {name!r:.60} is empty, too long (128 characters), or the name of two tools", "tools"
            )
    if body.tool_choice == "required" and not tools:
        raise Problem(400, "tool_choice is required, and there are no tools", "tool_choice")
    if isinstance(body.tool_choice, NamedTool) and body.tool_choice.function.name not in names:
        name = body.tool_choice.function.name
        raise Problem(400, f"tool_choice: no tool is called {name:.60}", "tool_choice")
    if body.tool_choice == "none":
        return []
    # In the order in which models have seen them; whether a schema is strict is none of their business.
    return [
        {"type": "function", "function": to_builtins(structs.replace(tool.function, strict=None))} for tool in tools
    ]


async def grammar_for(
    call: Call[Any], body: ChatRequest, chat: Chat, tools: Sequence[dict[str, Any]], grammar: Grammar | None
) -> Grammar | None:
    """The grammar of the answer: calls if the request requires them, else `grammar`, after any thinking.

    If tools may be called, the answer to a request for JSON may also be a call.
    """
    choice = body.tool_choice
    must = choice == "required" or isinstance(choice, NamedTool)
    if not must and grammar is None:
        return None
    if must and grammar is not None and grammar.kind not in _OF_JSON:
        raise Problem(400, "tool_choice requires a call, and the grammar another answer; give one of them")
    model = await call.service.model()
    end = ""
    if may_think(model.template):
        end = (await call.service.tokens(call.user, chat)).text[-256:]
    grammars = AnswerGrammars(model.template, end, model.specials)
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool["function"]["name"] == choice.function.name]
    parallel = body.parallel_tool_calls is not False
    if must or grammar is None:
        return grammars.calls(tools, parallel)
    if tools and grammar.kind in _OF_JSON:
        return grammars.calls(tools, parallel, otherwise=grammar)
    return grammars.after_thinking(grammar)
