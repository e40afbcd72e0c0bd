"""The clients of OpenAI and Anthropic, asynchronous, many requests at once. OpenAI's is strict about types."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from clients.asked import DIM, HOT, MESSAGES, NO_THINKING, TOOLS, Person, is_call
from integration.api import SOON_S, WEATHER, Api


def test_openais_client_has_all_its_answers_at_once(api: Api) -> None:
    import openai

    async def asked() -> list[Any]:
        async with openai.AsyncOpenAI(
            base_url=f"{api.url}/v1", api_key="none", timeout=SOON_S, max_retries=0, _strict_response_validation=True
        ) as client:
            chat = client.chat.completions

            async def streamed() -> str:
                pieces = await chat.create(model="any", messages=MESSAGES, max_tokens=8, temperature=0, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in pieces])

            return await asyncio.gather(
                chat.create(model="any", messages=MESSAGES, max_tokens=8, temperature=0, logprobs=True, top_logprobs=2),
                streamed(),
                chat.create(
                    model="any",
                    messages=MESSAGES,
                    tools=TOOLS,
                    tool_choice="required",
                    parallel_tool_calls=False,
                    **HOT,
                    extra_body=NO_THINKING,
                ),
                chat.parse(model="any", messages=MESSAGES, response_format=Person, extra_body=NO_THINKING, **HOT),
                client.responses.create(model="any", input="Hello", max_output_tokens=6, temperature=0),
                client.embeddings.create(model="any", input=["one", "two"], encoding_format="float"),
                client.completions.create(model="any", prompt="Once", max_tokens=6, temperature=0, logprobs=2),
            )

    whole, streamed, called, parsed, response, embedded, text = asyncio.run(asked())
    assert streamed == whole.choices[0].message.content != ""
    assert len(whole.choices[0].logprobs.content) == 8
    (call,) = called.choices[0].message.tool_calls
    assert is_call(call.function.name, json.loads(call.function.arguments))
    assert isinstance(parsed.choices[0].message.parsed, Person)
    assert response.usage.output_tokens == 6
    assert [len(one.embedding) for one in embedded.data] == [DIM, DIM]
    assert len(text.choices[0].logprobs.tokens) == 6


def test_anthropics_client_has_all_its_answers_at_once(api: Api) -> None:
    import anthropic

    async def asked() -> list[Any]:
        async with anthropic.AsyncAnthropic(base_url=api.url, api_key="none", timeout=SOON_S, max_retries=0) as client:
            tool: Any = {"name": "weather", "input_schema": WEATHER["parameters"]}

            async def streamed() -> Any:
                async with client.messages.stream(
                    model="any", max_tokens=8, messages=MESSAGES, extra_body={"temperature": 0}
                ) as stream:
                    return await stream.get_final_message()

            return await asyncio.gather(
                client.messages.create(model="any", max_tokens=8, messages=MESSAGES, extra_body={"temperature": 0}),
                streamed(),
                client.messages.create(
                    model="any",
                    max_tokens=400,
                    messages=MESSAGES,
                    tools=[tool],
                    tool_choice={"type": "any", "disable_parallel_tool_use": True},
                    extra_body={"seed": 3},
                    thinking={"type": "disabled"},
                ),
                client.messages.count_tokens(model="any", messages=MESSAGES),
            )

    whole, streamed, called, counted = asyncio.run(asked())
    assert [block.text for block in streamed.content] == [block.text for block in whole.content]
    assert streamed.stop_reason == whole.stop_reason == "max_tokens"
    calls = [block for block in called.content if block.type == "tool_use"]
    assert [is_call(call.name, call.input) for call in calls] == [True]
    assert counted.input_tokens == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
