"""Conversations for tests of chat templates."""

from __future__ import annotations

from typing import Any

USER = {"role": "user", "content": "Hello, how are you?"}
SYSTEM = {"role": "system", "content": "You are a <helpful> & 'kind' assistant.\nAnswer in French."}
ASSISTANT = {"role": "assistant", "content": "  I'm fine.\n\nÇa va? 😀 "}
AGAIN = {"role": "user", "content": '  Tell me <|im_end|> "more" about \\ {{ jinja }}.\n'}
THOUGHT = {"role": "assistant", "content": "<think>\nHe asks for more.\n</think>\n\nThere is no more."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "abcdefghi",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "São Paulo", "days": 3, "units": ["C", "F"]}},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": '{"temperature": 21.5}'}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The <weather> of a city & its suburbs",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
            "required": ["city"],
        },
    },
}
DATE = {"date_string": "26 Jul 2024"}

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "user": {"messages": [USER], "variables": DATE},
    "no prompt": {"messages": [USER, ASSISTANT], "add_generation_prompt": False, "variables": DATE},
    "system": {"messages": [SYSTEM, USER], "variables": DATE},
    "turns": {"messages": [USER, ASSISTANT, AGAIN], "variables": DATE},
    "system and turns": {"messages": [SYSTEM, USER, ASSISTANT, AGAIN, THOUGHT], "variables": DATE},
    "two of a kind": {"messages": [USER, AGAIN], "variables": DATE},
    "assistant first": {"messages": [ASSISTANT, USER], "variables": DATE},
    "tools": {"messages": [SYSTEM, USER], "tools": [TOOL, TOOL], "variables": DATE},
    "tool call": {"messages": [USER, CALL, RESULT], "tools": [TOOL], "variables": DATE},
    "tool call and more": {
        "messages": [SYSTEM, USER, CALL, RESULT, ASSISTANT, AGAIN],
        "tools": [TOOL],
        "variables": {**DATE, "tools_in_user_message": False},
    },
    "variables": {"messages": [USER], "variables": {**DATE, "enable_thinking": False, "builtin_tools": ["a", "b"]}},
    "odd role": {"messages": [{"role": "judge", "content": "Silence!"}], "variables": DATE},
    "nothing said": {"messages": [USER, {"role": "assistant", "content": ""}, AGAIN], "variables": DATE},
}
