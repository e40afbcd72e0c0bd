"""POST /v1/messages: Anthropic's form of a conversation, built on chat completions."""
