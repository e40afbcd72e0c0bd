"""Many requests over one model: schedule a step, evaluate it, choose, accept. Knows token ids, no text and no client.

One thread calls it. The engine holds all tokens of a sequence, so after a lost worker it evaluates them again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Iterable, Mapping
from collections.abc import Sequence as Tokens

import numpy as np
from msgspec import Struct

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
from dllama_zmq.sharding import PREFILL_TOKENS, check_ids, check_prompt

_MAX_LOST = 4
_COMPILE_WAIT_S = 0.01
_NO_CHOICES: Mapping[Sequence, Choice] = {}


class Outcome(Struct, frozen=True):
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
        self._failed: list[tuple[Sequence, Exception]] = []  # since the last outcome

    @property
    def busy(self) -> bool:
        """Whether any sequence has tokens left to evaluate, or has ended and the next outcome will say so."""
        return bool(self.scheduler.running or self.scheduler.waiting or self._compiling or self._failed)

    def add(
        self,
        prompt: Collection[int],
        sampling: Sampling,
        max_tokens: int | None = None,
        stop_ids: Iterable[int] = (),
        n_ids: int | None = None,
        grammar: str = "",
        owner: Hashable = None,
    ) -> Sequence:
        """Generate what follows `prompt` from the next step on.

        max_tokens None: until a stop id, or until the context is full. n_ids: only ids below it are generated.
        owner: prompts of different owners take turns.
        grammar: the answer is a sentence of it, as GrammarReader returns it; "": none. A stop id comes only where the
        sentence may end, and the answer ends by itself where nothing can follow. Raises RequestError if this cannot be
        answered on this cluster.
        """
        spec, seq_len = self.root.spec, self.root.seq_len
        check_prompt(len(prompt), max_tokens, seq_len, spec.seq_len)
        check_ids(prompt, spec.vocab_size)
        room = seq_len - len(prompt)
        sampler = Sampler(sampling, spec.vocab_size if n_ids is None else n_ids, len(prompt))
        stops = frozenset(stop_ids)
        sequence = Sequence(prompt, sampler, min(max_tokens or room, room), stops, owner=owner)
        if not grammar:
            self.scheduler.add(sequence)
            return sequence
        if self._vocabulary is None:
            raise RequestError("a grammar needs the model's tokenizer, and there is none")
        sequence.constraint = self._vocabulary.constraint(grammar, stops)
        self._compiling.append(sequence)
        return sequence

    def embed(self, prompt: Collection[int], owner: Hashable = None) -> Sequence:
        """Evaluate `prompt` from the next step on. It is finished when its `pooling` has all rows.

        Raises RequestError if this cannot be answered on this cluster.
        """
        spec, seq_len = self.root.spec, self.root.seq_len
        check_prompt(len(prompt), None, seq_len, spec.seq_len)
        check_ids(prompt, spec.vocab_size)
        sequence = Sequence(prompt, Sampler(GREEDY, spec.vocab_size), max_new=0, owner=owner)
        sequence.pooling = MeanPooling(spec.dim)
        self.scheduler.add(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Forget a sequence; its pages are free at once."""
        if sequence in self._compiling:
            self._compiling.remove(sequence)
            sequence.state = "finished"
        self._failed = [(failed, error) for failed, error in self._failed if failed is not sequence]
        self.scheduler.cancel(sequence)

    def step(self) -> Outcome:
        """Evaluate one step for all sequences whose turn it is.

        Raises WorkerLost; every sequence continues as if nothing had happened once the cluster is ready again. A
        sequence that has lost _MAX_LOST workers since its last token ends: it may be the cause. Any other error ends
        the sequence of the step. If the step has several, each is then evaluated alone, and only those that cause the
        error end.
        """
        self.renew()
        self._queue_compiled()
        if self._failed:
            return self._outcome()
        scheduled = self._schedule()
        if scheduled is None:
            if self._compiling and (constraint := self._compiling[0].constraint) is not None:
                constraint.wait(_COMPILE_WAIT_S)
            return self._outcome()
        try:
            choices, figures = self._evaluate(scheduled)
        except WorkerLost as lost:
            self._give_up(scheduled, lost)
            if not self._failed:
                raise
            return self._outcome()
        except Exception as error:
            self._blame(scheduled, error)
            return self._outcome()
        whole = self._accept_in_grammars(choices)
        self._pool(scheduled)
        chosen = [choices[sequence].token for _, sequence in scheduled.sampled]
        events = self.scheduler.accept(scheduled, chosen, whole)
        for event in events:
            if isinstance(event, Prefilled) and event.done == event.total:
                self.n_prompt_tokens += event.total
                self.n_cached_tokens += event.sequence.n_cached or 0
            elif isinstance(event, Token):
                event.sequence.n_lost = 0
        return self._outcome(events, figures, choices)

    def renew(self) -> None:
        """Begin again with empty pages, as many as every node has, if a worker has joined since the last step.

        Sequences that no longer fit end; the next outcome has their errors.
        """
        caches = self.root.cache_holders()
        if caches == self._caches:
            return
        self._caches = caches
        for sequence in self.scheduler.rewind(self.root.n_pages):
            room = self.root.n_pages * KV_PAGE
            self._fail(sequence, does_not_fit(sequence, "the nodes that are here now have", room))

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
        check_ids(tokens, self.root.spec.vocab_size)
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

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """End a sequence; the next outcome has its error."""
        self.scheduler.cancel(sequence)
        self._failed.append((sequence, error))

    def _outcome(
        self,
        events: list[Event] | None = None,
        figures: StepStats = NO_STEPS,
        choices: Mapping[Sequence, Choice] = _NO_CHOICES,
    ) -> Outcome:
        failed, self._failed = self._failed, []
        return Outcome(events or [], figures, failed, choices)

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

    def _queue_compiled(self) -> None:
        """Queue the sequences whose grammars are compiled; end those whose grammars cannot be."""
        for sequence in list(self._compiling):
            if sequence.constraint is None or not sequence.constraint.wait():
                continue
            self._compiling.remove(sequence)
            try:
                sequence.constraint.check()
                self.scheduler.add(sequence)
            except DllamaError as error:
                sequence.state = "finished"  # the scheduler does not know it
                self._fail(sequence, error)

    def _accept_in_grammars(self, choices: Mapping[Sequence, Choice]) -> set[Sequence]:
        """Advance the grammars by the chosen tokens; end the sequences that cannot continue. Returns complete ones."""
        whole: set[Sequence] = set()
        for sequence, choice in choices.items():
            if sequence.constraint is None or choice.token in sequence.stop_ids:
                continue
            try:
                if sequence.constraint.accept(choice.token):
                    whole.add(sequence)
            except DllamaError as error:
                self._fail(sequence, error)
        return whole

    def _pool(self, scheduled: Scheduled) -> None:
        """Pool the hidden states of the step; end the sequences with infinite or NaN ones."""
        row = 0
        for sequence, span in zip(scheduled.sequences, scheduled.spans, strict=True):
            if sequence.pooling is not None:
                try:
                    sequence.pooling.add(span.start, self.root.hidden(slice(row, row + span.count)))
                except DllamaError as error:
                    self._fail(sequence, error)
            row += span.count

    def _give_up(self, scheduled: Scheduled, lost: WorkerLost) -> None:
        """End the sequences of a failed step that have lost a worker in too many of their steps."""
        for sequence in scheduled.sequences:
            sequence.n_lost += 1
            if sequence.n_lost >= _MAX_LOST:
                times = f"a worker was lost {sequence.n_lost} times while this request waited for its next token"
                self._fail(sequence, WorkerLost(f"{lost}; {times}, so it is given up"))

    def _blame(self, scheduled: Scheduled, error: Exception) -> None:
        """End the sequence whose step failed; if the step has several, each is tried alone from the next step on."""
        if len(scheduled.sequences) > 1:
            self._suspects.extend(scheduled.sequences)
        else:
            self._fail(scheduled.sequences[0], error)


def _mask(sequence: Sequence) -> U8 | None:
    """The mask of tokens that the grammar of a sequence allows next; None: all."""
    return None if sequence.constraint is None else sequence.constraint.mask


def _phase(scheduled: Scheduled) -> Phase:
    """The purpose of a step: prompts, the next tokens of texts, or both."""
    n_decoding = sum(len(sequence.tokens) > sequence.n_prompt for _, sequence in scheduled.sampled)
    if not n_decoding:
        return "prompt"
    return "prediction" if n_decoding == len(scheduled.tokens) else "mixed"
