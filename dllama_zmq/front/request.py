"""One client's request, from its message to the end of its answer. Knows text and tokens, no socket."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from dllama_zmq.bus.client_messages import Done, Generate, Logprob, Piece, RequestStatus, StepStats
from dllama_zmq.bus.engine_messages import Sampled, Submit
from dllama_zmq.bus.prompts import AnyPrompt, ChatText
from dllama_zmq.errors import RequestError
from dllama_zmq.front.texts import Texts
from dllama_zmq.sampling import Sampling
from dllama_zmq.tokenizer import Tokenizer
from dllama_zmq.tokenizer.decoder import IncrementalDecoder


@dataclass(slots=True, eq=False)
class Request:
    """`id` is the client's, `engine_id` that of the engine: 0 until the request is submitted.

    came, reminded, started: time.monotonic(). grammar: that of `asked`, as it has been read.
    """

    client: bytes
    asked: Generate
    seed: int
    came: float
    reminded: float
    engine_id: int = 0
    started: float = 0.0
    n_prompt: int = 0
    n_cached: int = 0
    first_token: float = 0.0
    n_tokens: int = 0
    cancelled: bool = False
    grammar: str = ""
    decoder: IncrementalDecoder | None = field(default=None, repr=False)

    @property
    def id(self) -> int:
        """The client's own number of it."""
        return self.asked.id

    @property
    def prompt(self) -> AnyPrompt:
        """What its answer continues."""
        return self.asked.prompt

    @property
    def size(self) -> int:
        """Its characters, for the bound of all that wait; a bias of a token counts as 32."""
        asked = self.asked
        grammar = asked.grammar.text if asked.grammar is not None else ""
        prompt = asked.prompt
        n = (
            36 * len(prompt)
            if isinstance(prompt, list)
            else len(prompt.json if isinstance(prompt, ChatText) else prompt)
        )
        return n + sum(map(len, asked.stop)) + 32 * len(asked.sampling.logit_bias) + len(grammar)

    @property
    def sampling(self) -> Sampling:
        """How its tokens are chosen."""
        return msgspec.structs.replace(self.asked.sampling, seed=self.seed)

    def check(self) -> None:
        """Raise RequestError for what can never be answered."""
        self.sampling.check()
        if self.asked.n > 1:
            raise RequestError("this root gives one answer to a request only")
        if self.asked.grammar is not None:
            self.asked.grammar.check()

    def submit(self, tokens: list[int], tokenizer: Tokenizer, vocab_size: int) -> Submit:
        """What the engine is told: `tokens` are those of the prompt. From here on its answer can be decoded."""
        asked = self.asked
        self.n_prompt, self.started = len(tokens), time.monotonic()
        self.decoder = tokenizer.decoder(continues=True, stop=asked.stop, specials=asked.specials)
        stop_ids = [] if asked.ignore_eos else list(tokenizer.eos_ids)
        n_ids = min(tokenizer.vocab_size, vocab_size)
        return Submit(self.engine_id, tokens, asked.max_tokens, self.sampling, stop_ids, n_ids, self.grammar)

    @property
    def stopped(self) -> bool:
        """Whether its text has ended before a stop string."""
        return self.decoder is not None and self.decoder.stopped

    def piece(self, sampled: Sampled, figures: StepStats, texts: Texts) -> Piece:
        """One token more, of a step with these figures."""
        first = not self.n_tokens
        self.n_tokens += 1
        self.first_token = self.first_token or time.monotonic()
        text = self.decoder.push(sampled.token) if self.decoder is not None else ""
        logprobs = [Logprob(token, texts.name_of(token), p) for token, p in sampled.logprobs]
        # The first token comes with the last of the prompt, whose step has told its figures already.
        return Piece(self.id, sampled.token, text, None if first else figures, logprobs)

    def done(self, reason: Literal["stop", "length", "cancelled"]) -> Done:
        """The end, with what was held back of the text."""
        text = self.decoder.flush() if self.decoder is not None else ""
        return Done(self.id, "stop" if self.stopped and reason == "length" else reason, text)

    def status(self, now: float) -> RequestStatus:
        """How it is at `now`, of time.monotonic()."""
        seconds = now - self.first_token
        return RequestStatus(
            "running" if self.engine_id else "waiting",
            self.n_prompt,
            self.n_cached,
            self.n_tokens,
            now - self.came,
            (self.n_tokens - 1) / seconds if self.n_tokens > 1 and seconds > 0 else 0.0,
        )
