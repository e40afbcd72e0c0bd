"""One client's request, from its message to the end of its last answer, or its question about text or the model.

Knows text and tokens, no socket.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from dllama_zmq.bus.client_messages import Done, Generate, Logprob, RequestStatus, StepStats, TokenText
from dllama_zmq.bus.engine_messages import Sampled, Submit, SubmitEmbed
from dllama_zmq.bus.messages import Message
from dllama_zmq.bus.prompts import held_bytes
from dllama_zmq.bus.text_messages import Detokenize, ModelRequest, Tokenize
from dllama_zmq.front.texts import Encoded, Texts
from dllama_zmq.tokenizer.decoder import IncrementalDecoder

Reason: TypeAlias = Literal["stop", "length", "cancelled"]
_SEEDS = 1 << 63


@dataclass(slots=True, eq=False)
class Request:
    """`id` is the client's. A request waits until its prompt is encoded, and then for a place for each of its answers.

    came, reminded, started: time.monotonic(). open: indices of the answers that have not ended. begun: those of them
    that the engine has. grammar: the grammar of `asked` in the engine's notation. embeds: its only answer is an
    embedding.
    """

    client: bytes
    asked: Generate
    seed: int
    came: float
    reminded: float
    embeds: bool = False
    started: float = 0.0
    encoded: Encoded | None = field(default=None, repr=False)
    n_cached: int = 0
    first_token: float = 0.0
    n_tokens: int = 0
    n_begun: int = 0
    open: set[int] = field(default_factory=set)
    begun: dict[int, Answer] = field(default_factory=dict, repr=False)
    cancelled: bool = False
    grammar: str = ""

    def __post_init__(self) -> None:
        self.open = set(range(self.asked.n))

    @property
    def id(self) -> int:
        """The client's number for it."""
        return self.asked.id

    @property
    def size(self) -> int:
        """Its approximate bytes, for the bound on everything that waits; a logit bias counts as 32."""
        asked = self.asked
        prompt = held_bytes(asked.prompt if self.encoded is None else self.encoded.tokens)
        grammar = asked.grammar.text if asked.grammar is not None else ""
        return prompt + sum(map(len, asked.stop)) + 32 * len(asked.sampling.logit_bias) + len(grammar)

    @property
    def n_prompt(self) -> int:
        """Tokens of its prompt; 0 until it is encoded."""
        return 0 if self.encoded is None else len(self.encoded.tokens)

    def check(self) -> None:
        """Raise RequestError if the request can never be answered."""
        self.asked.sampling.check()
        if self.asked.grammar is not None:
            self.asked.grammar.check()

    def work(self, texts: Texts) -> Encoded:
        """Encode the prompt and read the grammar; may take seconds. Raises DllamaError."""
        if self.asked.grammar is not None:
            self.grammar = texts.grammar(self.asked.grammar)
        return texts.encode(self.asked.prompt, self.asked.max_tokens)

    def begin(self, texts: Texts, engine_id: int) -> Answer:
        """Begin the next answer. engine_id: the engine's number for it."""
        self.started = self.started or time.monotonic()
        decoder = texts.tokenizer.decoder(continues=True, stop=self.asked.stop, specials=self.asked.specials)
        answer = self.begun[self.n_begun] = Answer(self, self.n_begun, decoder, engine_id)
        self.n_begun += 1
        return answer

    def done(self, index: int, reason: Reason) -> Done:
        """End an answer: its Done message, with the text that was held back."""
        self.open.discard(index)
        answer = self.begun.pop(index, None)
        if answer is None:
            return Done(self.id, reason, "", index)
        text, stop = answer.decoder.flush(), answer.decoder.stopped
        return Done(self.id, "stop" if stop and reason == "length" else reason, text, index, stop)

    def status(self, now: float) -> RequestStatus:
        """Its entry in Status. now: time.monotonic()."""
        seconds = now - self.first_token
        return RequestStatus(
            "running" if self.begun else "waiting",
            self.n_prompt,
            self.n_cached,
            self.n_tokens,
            now - self.came,
            (self.n_tokens - 1) / seconds if self.n_tokens > 1 and seconds > 0 else 0.0,
        )


@dataclass(slots=True, eq=False)
class Answer:
    """One answer while the engine has it, under the number `engine_id`."""

    request: Request
    index: int
    decoder: IncrementalDecoder = field(repr=False)
    engine_id: int
    n_tokens: int = 0

    def submit(self, tokens: list[int], texts: Texts) -> Submit | SubmitEmbed:
        """The Submit message for the engine. tokens: those of the prompt."""
        if self.request.embeds:
            return SubmitEmbed(self.engine_id, self.request.client, tokens)
        asked, tokenizer = self.request.asked, texts.tokenizer
        sampling = msgspec.structs.replace(asked.sampling, seed=(self.request.seed + self.index) % _SEEDS)
        stop_ids = [] if asked.ignore_eos else list(tokenizer.eos_ids)
        n_ids = min(tokenizer.vocab_size, texts.vocab_size)
        return Submit(
            self.engine_id,
            self.request.client,
            tokens,
            asked.max_tokens,
            sampling,
            stop_ids,
            n_ids,
            self.request.grammar,
        )

    def piece(self, sampled: Sampled, figures: StepStats, texts: Texts) -> TokenText:
        """The message for one more token of a step with these figures."""
        request, first = self.request, not self.n_tokens
        self.n_tokens += 1
        request.n_tokens += 1
        request.first_token = request.first_token or time.monotonic()
        text = self.decoder.push(sampled.token)
        logprobs = [Logprob(token, texts.name_of(token), p) for token, p in sampled.logprobs]
        # the first token comes from the prompt's last step, whose figures were sent with Prefill
        return TokenText(request.id, sampled.token, text, None if first else figures, logprobs, self.index)


class Question(Struct, eq=False):
    """A question that waits for a thread to answer it."""

    client: bytes
    asked: Tokenize | Detokenize | ModelRequest

    @property
    def id(self) -> int:
        """The client's number for it."""
        return self.asked.id

    @property
    def size(self) -> int:
        """Its approximate bytes, for the bound on everything that waits."""
        if isinstance(self.asked, ModelRequest):
            return 0
        return held_bytes(self.asked.tokens if isinstance(self.asked, Detokenize) else self.asked.prompt)

    def work(self, texts: Texts) -> Message:
        """The answer; may take seconds."""
        return texts.answer(self.asked)
