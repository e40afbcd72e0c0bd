"""Parsing of answers: thinking, content and tool calls, in the form that the model's chat template taught it.

Pure: knows texts; knows no tokens, files or sockets.
"""

from dllama_zmq.chat.deltas import Delta, ToolDelta
from dllama_zmq.chat.history import for_template
from dllama_zmq.chat.parser import AnswerParser, needs_specials
from dllama_zmq.chat.tool_grammars import AnswerGrammars, may_think

__all__ = [
    "AnswerGrammars",
    "AnswerParser",
    "Delta",
    "ToolDelta",
    "for_template",
    "may_think",
    "needs_specials",
]
