"""What an answer means: thinking, content and tool calls, written as the model's chat template has taught it.

Pure: knows texts, and nothing of tokens, files and sockets.
"""

from dllama_zmq.chat.deltas import Delta, ToolDelta
from dllama_zmq.chat.forced import Prompted, may_think
from dllama_zmq.chat.history import for_template
from dllama_zmq.chat.parser import AnswerParser, needs_specials, parser_for

__all__ = [
    "AnswerParser",
    "Delta",
    "Prompted",
    "ToolDelta",
    "for_template",
    "may_think",
    "needs_specials",
    "parser_for",
]
