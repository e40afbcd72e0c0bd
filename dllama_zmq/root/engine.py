"""Many requests over one model: schedule a step, evaluate it, choose, accept. Knows token ids, no text and no client.

One thread calls it. The engine holds all tokens of a sequence, so after a lost worker it evaluates them again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Sequence as Tokens
from dataclasses import dataclass

import numpy as np

from dllama_zmq.bus.client_messages import NO_STEPS, StepStats
from dllama_zmq.bus.meter import Phase
from dllama_zmq.constraint.matching import Vocabulary
from dllama_zmq.errors import DllamaError, RequestError, WorkerLost
from dllama_zmq.kernels import KV_PAGE, Batch, Span
from dllama_zmq.quants import F32, U8
from dllama_zmq.root.pace import Pace
from dllama_zmq.root.pages import PagePool
from dllama_zmq.root.pooling import MeanPooling
from dllama_zmq.root.root import Root
from dllama_zmq.root.sampler import Choice, Sampler
from dllama_zmq.root.scheduler import Event, Prefilled, Scheduled, Scheduler, Token, does_not_fit
from dllama_zmq.root.sequence import Sequence
from dllama_zmq.sampling import GREEDY, Sampling
from dllama_zmq.sharding import PREFILL_TOKENS, check_prompt

_MAX_LOST = 4
_COMPILE_WAIT_S = 0.01


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one step, and its cost. failed: sequences that have left, each with its error.

    choices: for each sequence, how the token in `events` was chosen.
    """

    events: list[Event]
    figures: StepStats
    failed: list[tuple[Sequence, Exception]]
    choices: Mapping[Sequence, Choice]


class Engine:
    """The sequences of one root. `add` and `cancel` between steps, `step` while `busy`.

    n_prompt_tokens: tokens of all prompts so far. n_cached_tokens: those of them that the prefix cache had.
    """

    def __init__(self, root: Root, max_sequences: int, vocabulary: Vocabulary | None = None) -> None:
        """vocabulary: the tokens that grammars are made for; None: requests cannot have a grammar."""
        self._vocabulary = vocabulary
        self._compiling: deque[Sequence] = deque()  # with their grammars, before the scheduler knows them
        self.root, self.max_sequences = root, max_sequences
        self.scheduler = Scheduler(PagePool(root.n_pages, KV_PAGE), max_sequences)
        self.pace = Pace(self.scheduler.prefill_rows)
        self.n_prompt_tokens = self.n_cached_tokens = 0
        self._caches = root.cache_holders()
        self._suspects: deque[Sequence] = deque()

    @property
    def busy(self) -> bool:
        """Whether any sequence has tokens left to evaluate."""
        return bool(self.scheduler.running or self.scheduler.waiting or self._compiling)

    def add(
        self,
        prompt: Collection[int],
        sampling: Sampling,
        max_tokens: int | None = None,
        stop_ids: Iterable[int] = (),
        n_ids: int | None = None,
        grammar: str = "",
    ) -> Sequence:
        """Generate what follows `prompt` from the next step on.

        max_tokens None: until a stop id, or until the context is full. n_ids: only ids below it are generated.
        grammar: the answer is a sentence of it, as GrammarReader returns it; "": none. A stop id comes only where the
        sentence may end, and the answer ends by itself where nothing can follow. Raises RequestError if this cannot be
        answered on this cluster.
        """
        spec, seq_len = self.root.spec, self.root.seq_len
        check_prompt(len(prompt), max_tokens, seq_len, spec.seq_len)
        self._check_ids(prompt)
        room = seq_len - len(prompt)
        sampler = Sampler(sampling, spec.vocab_size if n_ids is None else n_ids, len(prompt))
        stops = frozenset(stop_ids)
        sequence = Sequence(prompt, sampler, min(max_tokens or room, room), stops)
        if not grammar:
            self.scheduler.add(sequence)
            return sequence
        if self._vocabulary is None:
            raise RequestError("a grammar needs the model's tokenizer, and there is none")
        sequence.constraint = self._vocabulary.constraint(grammar, stops)
        self._compiling.append(sequence)
        return sequence

    def embed(self, prompt: Collection[int]) -> Sequence:
        """Evaluate `prompt` from the next step on. It is finished when its `pooling` has all rows.

        Raises RequestError if this cannot be answered on this cluster.
        """
        spec, seq_len = self.root.spec, self.root.seq_len
        check_prompt(len(prompt), None, seq_len, spec.seq_len)
        self._check_ids(prompt)
        sequence = Sequence(prompt, Sampler(GREEDY, spec.vocab_size), max_new=0)
        sequence.pooling = MeanPooling(spec.dim)
        self.scheduler.add(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Forget a sequence; its pages are free at once."""
        if sequence in self._compiling:
            self._compiling.remove(sequence)
            sequence.state = "finished"
        self.scheduler.cancel(sequence)

    def step(self) -> Outcome:
        """Evaluate one step for all sequences whose turn it is.

        Raises WorkerLost; every sequence continues as if nothing had happened once the cluster is ready again. A
        sequence that has lost _MAX_LOST workers since its last token ends: it may be the cause. Any other error ends
        the sequence of the step. If the step has several, each is then evaluated alone, and only those that cause the
        error end.
        """
        if failed := [*self.renew(), *self._compiled()]:
            return Outcome([], NO_STEPS, failed, {})
        scheduled = self._schedule()
        if scheduled is None:
            if self._compiling and (constraint := self._compiling[0].constraint) is not None:
                constraint.wait(_COMPILE_WAIT_S)
            return Outcome([], NO_STEPS, [], {})
        try:
            choices, figures = self._evaluate(scheduled)
        except WorkerLost as lost:
            if failed := self._give_up(scheduled, lost):
                return Outcome([], NO_STEPS, failed, {})
            raise
        except Exception as error:
            return Outcome([], NO_STEPS, self._blame(scheduled, error), {})
        whole, failed = self._accepted(choices)
        failed += self._pooled(scheduled)
        chosen = [choices[sequence].token for _, sequence in scheduled.sampled]
        events = self.scheduler.accept(scheduled, chosen, whole)
        for event in events:
            if isinstance(event, Prefilled) and event.done == event.total:
                self.n_prompt_tokens += event.total
                self.n_cached_tokens += event.sequence.n_cached or 0
            elif isinstance(event, Token):
                event.sequence.n_lost = 0
        return Outcome(events, figures, failed, choices)

    def renew(self) -> list[tuple[Sequence, Exception]]:
        """Begin again with empty pages, as many as every node has, if a worker has joined since the last step.

        Returns the sequences that no longer fit, which have left, each with its error.
        """
        caches = self.root.cache_holders()
        if caches == self._caches:
            return []
        self._caches = caches
        room = self.root.n_pages * KV_PAGE
        return [
            (sequence, does_not_fit(sequence, "the nodes that are here now have", room))
            for sequence in self.scheduler.rewind(self.root.n_pages)
        ]

    def logits(self, tokens: Tokens[int], rows: int = PREFILL_TOKENS) -> F32:
        """The logits (T, V) after each of `tokens` (T,), as a text of its own, evaluated `rows` at a time.

        Raises RequestError if there are no pages left for them beside the open sequences.
        """
        pool, seq_len = self.scheduler.pool, self.root.seq_len
        if not len(tokens):
            raise RequestError("no tokens: expected at least one")
        if len(tokens) > seq_len:
            raise RequestError(
                f"positions 0 to {len(tokens) - 1}; this cluster has room for {seq_len} (max_seq_len, in cluster.yaml "
                "or of load)"
            )
        self._check_ids(tokens)
        pages = [page for _ in range(pool.n_pages_of(len(tokens))) if (page := pool.take()) is not None]
        chunks = []
        try:
            if len(pages) < pool.n_pages_of(len(tokens)):
                raise RequestError(f"no room for {len(tokens)} tokens beside the texts that are being generated")
            for start in range(0, len(tokens), rows):
                chunk = tokens[start : start + rows]
                span = Span(start, len(chunk), pages[: pool.n_pages_of(start + len(chunk))])
                chunks.append(self.root.logits(Batch([span]), chunk))
        finally:
            pool.release(pages)
        return np.concatenate(chunks)

    def _schedule(self) -> Scheduled | None:
        while self._suspects:
            if (alone := self.scheduler.schedule_alone(self._suspects.popleft())) is not None:
                return alone
        scheduler = self.scheduler
        n_decoding = scheduler.n_decoding
        if n_decoding < len(scheduler.running) or scheduler.waiting:
            scheduler.mixed_rows = self.pace.rows(n_decoding)
        return scheduler.schedule()

    def _evaluate(self, scheduled: Scheduled) -> tuple[dict[Sequence, Choice], StepStats]:
        """Run a step, and choose the next token of each sampled row. The figures include asking for more."""
        sampled = scheduled.sampled
        self.root.set_phase(_phase(scheduled))
        asks = {row: sequence.sampler.ask(sequence.tokens, _mask(sequence)) for row, sequence in sampled}
        answers, figures = self.root.evaluate(Batch(scheduled.spans), scheduled.tokens, asks)
        n_decoding = sum([span.count == 1 for span in scheduled.spans])
        self.pace.add(n_decoding, len(scheduled.tokens) - n_decoding, figures.wall_s)
        choices: dict[Sequence, Choice] = {}
        while True:
            again = {}
            for (row, sequence), answer in zip(sampled, answers, strict=True):
                choice = sequence.sampler.choose(answer)
                if choice is not None:
                    choices[sequence] = choice
                else:
                    again[row] = sequence.sampler.ask_more().k
            if not again:
                return choices, figures
            answers, asked_again = self.root.more(again)
            figures += asked_again
            sampled = [(row, sequence) for row, sequence in sampled if row in again]

    def _compiled(self) -> list[tuple[Sequence, Exception]]:
        """Queue the sequences whose grammars are compiled. Returns those that cannot be, each with its error."""
        failed: list[tuple[Sequence, Exception]] = []
        for sequence in list(self._compiling):
            if sequence.constraint is None or not sequence.constraint.wait():
                continue
            try:
                sequence.constraint.check()
                self.scheduler.add(sequence)
            except DllamaError as error:
                sequence.state = "finished"
                failed.append((sequence, error))
            self._compiling.remove(sequence)
        return failed

    def _accepted(self, choices: Mapping[Sequence, Choice]) -> tuple[set[Sequence], list[tuple[Sequence, Exception]]]:
        """Advance the grammars by the chosen tokens. Returns the complete sequences, and those that cannot continue."""
        whole: set[Sequence] = set()
        failed: list[tuple[Sequence, Exception]] = []
        for sequence, choice in choices.items():
            if sequence.constraint is None or choice.token in sequence.stop_ids:
                continue
            try:
                if sequence.constraint.accept(choice.token):
                    whole.add(sequence)
            except DllamaError as error:
                self.scheduler.cancel(sequence)
                failed.append((sequence, error))
        return whole, failed

    def _pooled(self, scheduled: Scheduled) -> list[tuple[Sequence, Exception]]:
        """Pool the hidden states of the step. Returns the sequences with infinite or NaN ones, each with its error."""
        failed: list[tuple[Sequence, Exception]] = []
        row = 0
        for sequence, span in zip(scheduled.sequences, scheduled.spans, strict=True):
            if sequence.pooling is not None:
                try:
                    sequence.pooling.add(span.start, self.root.hidden(slice(row, row + span.count)))
                except DllamaError as error:
                    self.scheduler.cancel(sequence)
                    failed.append((sequence, error))
            row += span.count
        return failed

    def _check_ids(self, tokens: Collection[int]) -> None:
        for token in tokens:
            if not 0 <= token < self.root.spec.vocab_size:
                raise RequestError(f"token {token}; this model's tokens are 0 to {self.root.spec.vocab_size - 1}")

    def _give_up(self, scheduled: Scheduled, lost: WorkerLost) -> list[tuple[Sequence, Exception]]:
        """The sequences of a failed step that end because a worker was lost in too many of their steps."""
        failed: list[tuple[Sequence, Exception]] = []
        for sequence in scheduled.sequences:
            sequence.n_lost += 1
            if sequence.n_lost >= _MAX_LOST:
                self.scheduler.cancel(sequence)
                times = f"a worker was lost {sequence.n_lost} times while this request waited for its next token"
                failed.append((sequence, WorkerLost(f"{lost}; {times}, so it is given up")))
        return failed

    def _blame(self, scheduled: Scheduled, error: Exception) -> list[tuple[Sequence, Exception]]:
        """The sequence that ends because its step failed; none if the step has several, each of which is then tried
        alone."""
        if len(scheduled.sequences) > 1:
            self._suspects.extend(scheduled.sequences)
            return []
        (sequence,) = scheduled.sequences
        self.scheduler.cancel(sequence)
        return [(sequence, error)]


def _mask(sequence: Sequence) -> U8 | None:
    """The mask of tokens that the grammar of a sequence allows next; None: all."""
    return None if sequence.constraint is None else sequence.constraint.mask


def _phase(scheduled: Scheduled) -> Phase:
    """The purpose of a step: prompts, the next tokens of texts, or both."""
    n_decoding = sum(len(sequence.tokens) > sequence.n_prompt for _, sequence in scheduled.sampled)
    if not n_decoding:
        return "prompt"
    return "prediction" if n_decoding == len(scheduled.tokens) else "mixed"
