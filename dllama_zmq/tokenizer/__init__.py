"""Text to tokens and back, and chats to text. Knows no file: `formats/` reads vocabularies."""

from dllama_zmq.tokenizer.chat import ChatTemplate
from dllama_zmq.tokenizer.data import TokenizerData
from dllama_zmq.tokenizer.decoder import IncrementalDecoder
from dllama_zmq.tokenizer.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "IncrementalDecoder", "Tokenizer", "TokenizerData"]
