"""`dllama-zmq chat`: a conversation with a model, at a terminal or line by line.

Design, and the programs it follows:
- At a terminal (ollama, llama-cli): commands begin with `/`; texts of several lines stand between triple quotes. Ctrl-C
  stops the answer: its text so far stays in the conversation, and the prompt returns. Ctrl-D leaves.
- Over a pipe or with --json (llm): one message a line, answered one after the other. Every line is a message, even if
  it begins with `/`: what a program passes on must not read or write files.
- The text streams as the model writes it, unchanged but for control characters, which a terminal shows and does not
  obey. Thinking is dimmed on a terminal, and left out of a pipe.
- A message that could not be answered is not in the conversation. If the context is full, the message is refused, and
  /drop or /clear makes room: nothing is dropped silently.
- A model without a chat template continues texts: each message continues the text so far.
"""
