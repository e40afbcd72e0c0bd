"""POST /v1/responses: OpenAI's newer form of a conversation, built on chat completions. Nothing is stored."""
