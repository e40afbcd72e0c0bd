"""`dllama-zmq chat`: a conversation with a model, at a terminal or line by line.

What was decided, and after whom:
- At a terminal (ollama, llama-cli): commands begin with `/`, texts of several lines stand between triple quotes. Ctrl-C
  stops the answer, what is there of it stays in the conversation, and the prompt comes back; Ctrl-D leaves.
- Over a pipe or with --json (llm): one message a line, one answer after the other. Every line is a message, also one
  that begins with `/`: what a program passes on must not read or write files.
- The text streams as the model writes it. Nothing of it is rewritten but control characters, which a terminal shows
  and does not obey; thinking is dimmed on a terminal, and left out of a pipe.
- A message that could not be answered is not in the conversation. When the context is full, the message is refused and
  /drop or /clear makes room: nothing is left out silently.
- A model without a chat template continues texts: each message goes on where the text stands.
"""
