"""POST /v1/messages: Anthropic's form of a conversation, over that of chat completions."""
