"""Choose the rows of the next step, for many sequences over one pool of pages, and take in what the step has chosen.

Knows sequences and pages; knows nothing of nodes, models, probabilities and time. The life of a sequence:

             add                   pages found or free                  stop id, max_new
    (new) ─────────► waiting ──────────────────────────────► running ─────────────────────► finished
                      ▲   │                                   │   │                            ▲
                      │   └── cancel ─────────────────────────┼───┴── cancel ──────────────────┘
                      └─────── no page left, or rewind ───────┘
                               (n_computed = 0, pages given back)

A step has one row for each sequence that decodes, which is one all of whose tokens but the last have been evaluated;
and a chunk of the others' tokens, the oldest's first: `prefill_rows` rows, or `mixed_rows` where others decode, whose
next token waits for this step. The row of a sequence's last token is sampled, and what is chosen becomes its next
token. Nothing but `accept` moves a sequence on: a step that failed and is never accepted did not happen.

Everything goes in order of arrival. All that wait have arrived after all that run: who waits is admitted in order,
where all its tokens' pages are available and one more for each that runs; and where a running sequence needs a page
and none is left, the youngest running one is preempted, so it gives its pages back and waits, first in the queue. So
the oldest always goes on: it can get every page, and alone it has enough (`add` refuses who has not).

Prefix cache: a page that is full is indexed, and a sequence that is admitted (for the first time or again) begins after
the indexed pages that hold its own first tokens; at least its last token is evaluated, as a step must give its logits.
It is admitted one step later where another sequence is about to fill the next page that it could share, so `n` equal
prompts are evaluated once. Of two pages with equal content the second is given back. A sequence that generates nothing
wants what the evaluation of each token gives, so it uses no page of others, and its rows are not sampled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Literal

from dllama_zmq.errors import ClusterDefect, RequestError
from dllama_zmq.kernels import Span
from dllama_zmq.root.pages import PagePool
from dllama_zmq.root.sequence import Sequence


@dataclass(slots=True, eq=False)
class Scheduled:
    """The rows of one step: `spans` cover them in order, each of the sequence beside it, and `tokens` are theirs.

    sampled: (row, sequence) of each row whose next token is to be chosen.
    """

    sequences: list[Sequence] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    sampled: list[tuple[int, Sequence]] = field(default_factory=list)


@dataclass(slots=True)
class Prefilled:
    """`done` of the `total` tokens of the prompt have keys and values, `count` of them new. A rewind begins again."""

    sequence: Sequence
    done: int
    total: int
    count: int


@dataclass(slots=True)
class Token:
    """One token more."""

    sequence: Sequence
    token: int


@dataclass(slots=True)
class Finished:
    """A stop id was chosen, the text is whole, or `max_new` tokens are generated. The sequence has left."""

    sequence: Sequence
    reason: Literal["stop", "length"]


Event = Prefilled | Token | Finished


def does_not_fit(sequence: Sequence, holder: str, room: int) -> RequestError:
    """The error of a sequence for which `holder` has too little room: `room` positions."""
    return RequestError(
        f"a prompt of {sequence.n_prompt} tokens and up to {sequence.max_new} new ones; {holder} room for {room} in all"
        ": shorten the prompt, ask for fewer tokens, or give the KV cache more memory"
    )


class Scheduler:
    """Sequences in order of arrival: `running`, at most `max_sequences`, then `waiting`.

    mixed_rows: may be set anew before each step (pace.py).
    """

    def __init__(self, pool: PagePool, max_sequences: int, prefill_rows: int = 128, mixed_rows: int = 8) -> None:
        self.pool = pool
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.n_preemptions = 0
        self._max_sequences = max_sequences
        self.prefill_rows, self.mixed_rows = prefill_rows, mixed_rows
        self._step: Scheduled | None = None

    @property
    def has_room(self) -> bool:
        """Fewer sequences than may run."""
        return len(self.running) + len(self.waiting) < self._max_sequences

    @property
    def n_decoding(self) -> int:
        """Running sequences with one token to evaluate."""
        return sum([len(sequence.tokens) - sequence.n_computed == 1 for sequence in self.running])

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence: it joins at the next step that has room. The caller bounds the queue (`has_room`).

        Raises RequestError where it could not even run alone.
        """
        if not sequence.tokens or sequence.max_new < 0:
            raise RequestError(
                f"a prompt of {sequence.n_prompt} tokens and at most {sequence.max_new} new ones; expected 1 or more, "
                "and 0 or more"
            )
        if not self._fits_alone(sequence):
            raise does_not_fit(sequence, "the KV cache has", self.pool.n_pages * self.pool.page_size)
        self.waiting.append(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Remove a sequence at once, also while a step has rows of it; one that has finished is left alone."""
        if sequence.state == "finished":
            return
        if sequence.state == "running":
            self._leave(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.state = "finished"

    def schedule(self) -> Scheduled | None:
        """The next step, or None where nobody has anything to evaluate. It replaces a step that was not accepted."""
        step = Scheduled()
        running = self.running
        rows_left = self.mixed_rows if self.n_decoding else self.prefill_rows
        for sequence in running:  # it loses at its end who is preempted
            n_left = len(sequence.tokens) - sequence.n_computed
            count = 1 if n_left == 1 else min(n_left, rows_left)
            if count and self._get_pages(sequence, sequence.n_computed + count):
                rows_left -= count if n_left > 1 else 0
                self._add_rows(step, sequence, count)
        while rows_left and self._admit(step):
            sequence = running[-1]
            count = min(len(sequence.tokens) - sequence.n_computed, rows_left)
            self._get_pages(sequence, sequence.n_computed + count)
            rows_left -= count
            self._add_rows(step, sequence, count)
        self._step = step if step.spans else None
        return self._step

    def schedule_alone(self, sequence: Sequence) -> Scheduled | None:
        """A step of one running sequence, as `schedule` would make it if there were no other; None where it waits."""
        step = Scheduled()
        count = min(len(sequence.tokens) - sequence.n_computed, self.prefill_rows)
        if sequence.state == "running" and self._get_pages(sequence, sequence.n_computed + count):
            self._add_rows(step, sequence, count)
        self._step = step if step.spans else None
        return self._step

    def accept(self, step: Scheduled, chosen: list[int], whole: Container[Sequence] = ()) -> list[Event]:
        """The last scheduled step is evaluated, and these are the tokens `chosen` for its sampled rows.

        whole: sequences whose text is whole with its token, which end with it.
        What concerns sequences that were cancelled meanwhile is dropped. Raises ClusterDefect for another step than the
        last, or after a rewind.
        """
        if step is not self._step:
            raise ClusterDefect("a step was accepted that is not the last one scheduled")
        self._step = None
        token_of = {sequence: token for (_, sequence), token in zip(step.sampled, chosen, strict=True)}
        events: list[Event] = []
        for sequence, span in zip(step.sequences, step.spans, strict=True):
            if sequence.state != "running":
                continue
            self._computed(sequence, span.start, span.start + span.count)
            n_prompt = sequence.n_prompt
            if len(sequence.tokens) == n_prompt:
                events.append(Prefilled(sequence, sequence.n_computed, n_prompt, span.count))
            token = token_of.get(sequence)
            if token is None:
                if sequence.n_computed == n_prompt and not sequence.max_new:
                    self._finish(sequence, "length", events)
                continue
            if token in sequence.stop_ids:
                self._finish(sequence, "stop", events)
                continue
            sequence.tokens.append(token)
            events.append(Token(sequence, token))
            if sequence in whole:
                self._finish(sequence, "stop", events)
            elif len(sequence.tokens) - n_prompt >= sequence.max_new:
                self._finish(sequence, "length", events)
        return events

    def rewind(self, n_pages: int | None = None) -> list[Sequence]:
        """Keys and values are gone everywhere, and the pool has `n_pages` from here on, or as many as before.

        All sequences are evaluated again. Those that no longer fit have left, and are returned.
        """
        while self.running:
            self._preempt(self.running[-1])
        self._step = None
        self.pool.reset(self.pool.n_pages if n_pages is None else n_pages)
        too_long = [sequence for sequence in self.waiting if not self._fits_alone(sequence)]
        for sequence in too_long:
            self.cancel(sequence)
        return too_long

    def _fits_alone(self, sequence: Sequence) -> bool:
        # The last token that is generated gets no keys and values.
        return self.pool.n_pages_of(sequence.n_prompt + max(sequence.max_new - 1, 0)) <= self.pool.n_pages

    def _admit(self, step: Scheduled) -> bool:
        """Let the first that waits run, if it can; its pages are those that its prefix is found in."""
        if not self.waiting or len(self.running) >= self._max_sequences:
            return False
        sequence, pool = self.waiting[0], self.pool
        pages = pool.find(sequence.tokens[:-1]) if sequence.max_new else []
        if sequence.max_new and self._next_page_is_in(step, sequence, pages):
            return False
        n_idle = sum(not pool.n_users(page) for page in pages)
        n_needed = pool.n_pages_of(len(sequence.tokens)) - len(pages) + len(self.running)
        if n_needed > pool.n_available - n_idle:
            return False
        self.waiting.popleft()
        self.running.append(sequence)
        pool.share(pages)
        sequence.state, sequence.pages, sequence.n_computed = "running", pages, len(pages) * pool.page_size
        if sequence.n_cached is None:
            sequence.n_cached = sequence.n_computed
        return True

    def _next_page_is_in(self, step: Scheduled, sequence: Sequence, pages: list[int]) -> bool:
        """Whether the step fills the page that would be the next one found after `pages`."""
        start = len(pages) * self.pool.page_size
        end = start + self.pool.page_size
        tokens = sequence.tokens[start:end]
        return end < len(sequence.tokens) and any(
            other.tokens[start:end] == tokens and other.pages[: len(pages)] == pages for other in step.sequences
        )

    def _get_pages(self, sequence: Sequence, n_positions: int) -> bool:
        """Give a running sequence pages for its first `n_positions`; False where it had to give all of its back."""
        pages, n_pages = sequence.pages, -(-n_positions // self.pool.page_size)
        while len(pages) < n_pages:
            page = self.pool.take()
            if page is not None:
                pages.append(page)
                continue
            youngest = self.running[-1]
            self._preempt(youngest)
            self.n_preemptions += 1
            if youngest is sequence:
                return False
        return True

    def _add_rows(self, step: Scheduled, sequence: Sequence, count: int) -> None:
        start = sequence.n_computed
        end = start + count
        step.sequences.append(sequence)
        step.spans.append(Span(start, count, sequence.pages[: -(-end // self.pool.page_size)]))
        step.tokens += sequence.tokens[start:end]
        if end == len(sequence.tokens) and sequence.max_new:
            step.sampled.append((len(step.tokens) - 1, sequence))

    def _computed(self, sequence: Sequence, start: int, end: int) -> None:
        """The positions from `start` up to `end` have keys and values: index the pages that are full by that."""
        sequence.n_computed = end
        pages, size = sequence.pages, self.pool.page_size
        for i in range(start // size, end // size):
            parent = pages[i - 1] if i else None
            pages[i] = self.pool.index(parent, sequence.tokens[i * size : (i + 1) * size], pages[i])

    def _finish(self, sequence: Sequence, reason: Literal["stop", "length"], events: list[Event]) -> None:
        self._leave(sequence)
        sequence.state = "finished"
        events.append(Finished(sequence, reason))

    def _preempt(self, sequence: Sequence) -> None:
        """The youngest running sequence waits, first in the queue, and is evaluated again later."""
        self._leave(sequence)
        sequence.state = "waiting"
        self.waiting.appendleft(sequence)

    def _leave(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.pages)
        sequence.pages, sequence.n_computed = [], 0
