"""POST /v1/responses: OpenAI's newer form of a conversation, over that of chat completions. Nothing is kept."""
