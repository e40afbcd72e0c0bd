"""Text to tokens and back, and conversations to text. Knows no file: formats/ reads a vocabulary, this runs it."""

from dllama_zmq.tokenizer.chat import ChatTemplate
from dllama_zmq.tokenizer.data import TokenizerData
from dllama_zmq.tokenizer.decoder import IncrementalDecoder
from dllama_zmq.tokenizer.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "IncrementalDecoder", "Tokenizer", "TokenizerData"]
