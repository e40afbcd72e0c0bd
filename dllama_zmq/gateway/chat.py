"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from msgspec import UNSET, Struct, field, structs, to_builtins

from dllama_zmq.bus.client_messages import Prefill, Queued, Started
from dllama_zmq.bus.prompts import Chat, prompt_on_wire
from dllama_zmq.chat import AnswerParser, Delta, for_template, needs_specials
from dllama_zmq.gateway import sampling_params
from dllama_zmq.gateway.answer_stream import End, Event, Output, answer_events
from dllama_zmq.gateway.endpoint import Call, Reply, Stream, event
from dllama_zmq.gateway.metrics import Tally
from dllama_zmq.gateway.problems import Problem
from dllama_zmq.gateway.replies import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatDelta,
    ChatLogprobs,
    ChatReply,
    ChunkChoice,
    FunctionCall,
    FunctionPart,
    InputTokens,
    PromptProgress,
    QueuePlace,
    Timings,
    ToolCall,
    ToolCallPart,
    Usage,
    new_id,
)
from dllama_zmq.gateway.requests import ChatRequest, Message, text_of
from dllama_zmq.gateway.tools import grammar_for, offered

DONE = b"data: [DONE]\n\n"


async def chat_completions(call: Call[ChatRequest]) -> Reply | Stream:
    """The next message of a conversation."""
    answer = await answer_of(call, call.body)
    if call.body.stream:
        return Stream(_chunks(answer, call.body))
    return Reply(await _whole(answer))


async def input_tokens(call: Call[ChatRequest]) -> Reply:
    """The number of tokens of a conversation's prompt."""
    return Reply(InputTokens(await n_prompt_tokens(call, call.body)))


async def n_prompt_tokens(call: Call[Any], body: ChatRequest) -> int:
    """The number of prompt tokens of `body`, whichever API it came from. Raises Problem, DllamaError."""
    chat = conversation(body, (await call.service.model()).template)
    return len((await call.service.tokens(call.user, chat)).tokens)


class Answer(Struct, frozen=True):
    """The answers to a conversation as a stream, and their progress. Close `events` to cancel the request."""

    model: str
    n: int
    events: AsyncGenerator[Event, None]
    tally: Tally
    created: int = field(default_factory=lambda: int(time.time()))


async def answer_of(call: Call[Any], body: ChatRequest) -> Answer:
    """Send the request of `body`, whichever API it came from. Raises Problem, DllamaError."""
    model, tools = await call.service.model(), offered(body)
    chat = conversation(body, model.template)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    limits = call.service.settings.limits
    request = sampling_params.generate_message(body, prompt_on_wire(chat), limits, logprobs, body.max_completion_tokens)
    grammar = await grammar_for(call, body, chat, tools, request.grammar)
    request = structs.replace(request, grammar=grammar, specials=needs_specials(model.template, tools))

    def parser(prompt_end: str) -> AnswerParser:
        return AnswerParser(model.template, prompt_end, tools, body.parallel_tool_calls is not False)

    tally = Tally()
    return Answer(model.name, request.n, answer_events(call.service, call.user, request, parser, tally), tally)


def conversation(body: ChatRequest, template: str) -> Chat:
    """The conversation as `template` reads it. Raises Problem.

    As in llama-server, a last message of the assistant is continued, unless the request says otherwise.
    """
    messages = [message_of(message, place) for place, message in enumerate(body.messages)]
    last = messages[-1]
    ends_with_answer = last["role"] == "assistant" and not last.get("tool_calls") and bool(last.get("content"))
    continues = body.continue_final_message
    if continues is None:
        continues = ends_with_answer and body.add_generation_prompt is None
    if continues and not ends_with_answer:
        raise Problem(400, "continue_final_message: the last message is not an assistant's text", "messages")
    if continues and body.add_generation_prompt:
        raise Problem(400, "continue_final_message and add_generation_prompt exclude each other; give one of them")
    changed, tools = for_template(template, messages, offered(body))
    return Chat(
        messages=changed,
        tools=tools,
        variables=_effort(body.reasoning_effort) | (body.chat_template_kwargs or {}),
        generation_prompt=not continues and body.add_generation_prompt is not False,
        continues=continues,
    )


def _effort(effort: str | None) -> dict[str, Any]:
    """The template's variables for the effort. Thinking is `enable_thinking` in Qwen's templates, `thinking` in
    DeepSeek's.
    """
    if effort is None:
        return {}
    thinks = effort != "none"
    return {"enable_thinking": thinks, "thinking": thinks, "reasoning_effort": effort}


def message_of(message: Message, place: int) -> dict[str, Any]:
    """A message as templates expect it: its text joined, without fields that are null. Raises Problem."""
    fields = {name: value for name, value in to_builtins(message).items() if value is not None}
    if message.role == "function":  # OpenAI's older name
        fields["role"] = "tool"
    if isinstance(message.content, list):
        fields["content"] = text_of(message.content, f"messages[{place}].content")
    elif message.content is None:
        if message.role != "assistant":
            raise Problem(400, f"messages[{place}].content is missing", f"messages[{place}].content")
        fields["content"] = None if message.tool_calls else ""
    return fields


class Collected(Struct):
    """A whole answer."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    reason: str = "stop"
    stop: str = ""

    def add(self, event: Output | End) -> None:
        """Append more of the answer, or its end."""
        if isinstance(event, End):
            self.reason, self.stop = event.reason, event.stop
            return
        self.logprobs.extend(event.logprobs)
        for delta in event.deltas:
            self.content.append(delta.content)
            self.reasoning.append(delta.reasoning)
            if delta.tool is not None:
                if delta.tool.index == len(self.calls):
                    self.calls.append(ToolCall(delta.tool.id, FunctionCall(delta.tool.name, "")))
                self.calls[delta.tool.index].function.arguments += delta.tool.arguments

    def message(self) -> AnswerMessage:
        """The message in OpenAI's form."""
        content, reasoning = "".join(self.content), "".join(self.reasoning)
        return AnswerMessage(
            content=None if self.calls and not content else content,
            reasoning_content=reasoning or UNSET,
            tool_calls=self.calls or UNSET,
        )


async def collected(answer: Answer) -> list[Collected]:
    """All answers, complete."""
    answers = [Collected() for _ in range(answer.n)]
    async with aclosing(answer.events) as events:
        async for one in events:
            if isinstance(one, Output | End):
                answers[one.index].add(one)
    return answers


async def _whole(answer: Answer) -> ChatReply:
    choices = [
        ChatChoice(index, one.message(), one.reason, ChatLogprobs.of(one.logprobs))
        for index, one in enumerate(await collected(answer))
    ]
    usage, timings = Usage.of([answer.tally]), Timings.of(answer.tally)
    return ChatReply(new_id("chatcmpl-"), answer.created, answer.model, choices, usage, timings)


async def _chunks(answer: Answer, body: ChatRequest) -> AsyncGenerator[bytes, None]:
    """The chunks: role, deltas, finish reason, the usage if it was requested, and [DONE]."""
    identity, tally = new_id("chatcmpl-"), answer.tally

    def chunk(*choices: ChunkChoice, **more: Any) -> bytes:
        return event(ChatChunk(identity, answer.created, answer.model, list(choices), **more))

    timed = bool(body.timings_per_token)
    async with aclosing(answer.events) as events:
        async for one in events:
            if isinstance(one, Output):
                more = {"timings": Timings.of(tally)} if timed else {}
                logprobs = one.logprobs
                for delta in one.deltas or [Delta()]:
                    yield chunk(ChunkChoice(one.index, _delta(delta), logprobs=ChatLogprobs.of(logprobs)), **more)
                    logprobs = ()
            elif isinstance(one, Started):
                for index in range(answer.n):
                    yield chunk(ChunkChoice(index, ChatDelta(role="assistant", content=None)))
            elif isinstance(one, End):
                yield chunk(ChunkChoice(one.index, ChatDelta(), one.reason), timings=Timings.of(tally))
            elif body.return_progress:
                yield chunk(**progress(one, tally))
    if body.stream_options is not None and body.stream_options.include_usage:
        yield chunk(usage=Usage.of([tally]), timings=Timings.of(tally))
    yield DONE


def progress(one: Queued | Prefill, tally: Tally) -> dict[str, Any]:
    """The progress of a request before its first token, as a field of a chunk."""
    if isinstance(one, Queued):
        return {"queued": QueuePlace(one.ahead, one.note)}
    time_ms = round(1000 * (time.monotonic() - tally.began))
    return {"prompt_progress": PromptProgress(one.total, one.cached_tokens, one.done, time_ms)}


def _delta(delta: Delta) -> ChatDelta:
    if delta.tool is None:
        return ChatDelta(
            content=delta.content or (UNSET if delta.reasoning else ""), reasoning_content=delta.reasoning or UNSET
        )
    tool = delta.tool
    function = FunctionPart(tool.name or UNSET, tool.arguments)
    kind = "function" if tool.id else UNSET
    return ChatDelta(tool_calls=[ToolCallPart(tool.index, function, tool.id or UNSET, kind)])
