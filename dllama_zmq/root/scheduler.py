"""Choose the rows of the next step, for many sequences over one pool of pages, and accept the tokens it sampled.

Knows sequences and pages; no nodes, models, probabilities or time. The life of a sequence:

             add                   pages found or free                  stop id, max_new
    (new) ─────────► waiting ──────────────────────────────► running ─────────────────────► finished
                      ▲   │                                   │   │                            ▲
                      │   └── cancel ─────────────────────────┼───┴── cancel ──────────────────┘
                      └─────── no page left, or rewind ───────┘
                               (n_computed = 0, pages given back)

A sequence decodes when all its tokens but the last have been evaluated; otherwise it prefills. A step has one row for
each sequence that decodes, and a chunk of the tokens of those that prefill: `prefill_rows` rows, or `mixed_rows` if any
sequence decodes, since its next token waits for the step. The row of a sequence's last token is sampled; the chosen
token is appended. Only `accept` advances a sequence, so a failed step changes nothing.

Owners of sequences (clients) take turns with the chunk, so a long prompt does not delay other owners' prompts. It goes
to the owner that has waited longest, to its oldest sequence first; rows that this owner does not need go to the next
one. An owner without sequences begins to wait when it adds one.

A waiting sequence is admitted in its owner's turn, when pages are available for all its tokens and for what the running
ones may need in this step. If a running sequence needs a page and none is left, the last admitted one is preempted: it
gives its pages back and waits, first in the queue. So the sequence that was admitted first advances whenever it has
rows: it can get every page, and `add` refuses a sequence that would not fit alone. If pages lack for an owner that has
no running sequence, and it needs no more than its share, owners with several running ones lose their youngest.

Prefix cache: a full page is indexed by its tokens. An admitted sequence starts after the indexed pages that match its
first tokens; at least its last token is evaluated, because its logits are needed. It waits for a running sequence that
will fill the next page that it could share, so `n` equal prompts are evaluated once. The second of two equal pages is
given back. A sequence that generates nothing (an embedding) needs the hidden state of each token, so it shares no
pages, and none of its rows is sampled.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container, Hashable
from typing import Literal

from msgspec import Struct, field

from dllama_zmq.errors import ClusterDefect, RequestError
from dllama_zmq.kernels import Span
from dllama_zmq.root.pages import PagePool
from dllama_zmq.root.sequence import Sequence


class Scheduled(Struct, eq=False):
    """The rows of one step: `spans` in order, the sequence of each span, and the tokens of all rows.

    sampled: (row, sequence) for each row after which a token is sampled. owners: those whose turn it was.
    """

    sequences: list[Sequence] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    sampled: list[tuple[int, Sequence]] = field(default_factory=list)
    owners: set[Hashable] = field(default_factory=set)


class Prefilled(Struct):
    """`done` of the `total` prompt tokens have keys and values, `count` of them since the last step. A rewind starts
    at 0."""

    sequence: Sequence
    done: int
    total: int
    count: int


class Token(Struct):
    """A sequence has one more token."""

    sequence: Sequence
    token: int


class Finished(Struct):
    """A sequence has ended and left: a stop id was sampled, its grammar is complete, or it has `max_new` new tokens."""

    sequence: Sequence
    reason: Literal["stop", "length"]


Event = Prefilled | Token | Finished


def does_not_fit(sequence: Sequence, holder: str, room: int) -> RequestError:
    """The error for a sequence that needs more than the `room` positions of `holder`."""
    return RequestError(
        f"a prompt of {sequence.n_prompt} tokens and up to {sequence.max_new} new ones; {holder} room for {room} in all"
        ": shorten the prompt, ask for fewer tokens, or give the KV cache more memory"
    )


class Scheduler:
    """`running`: at most `max_sequences`, in the order in which they were admitted; `waiting`: in order of arrival.

    mixed_rows: may be changed before each step (pace.py).
    """

    def __init__(self, pool: PagePool, max_sequences: int, prefill_rows: int = 128, mixed_rows: int = 8) -> None:
        self.pool = pool
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.n_preemptions = 0
        self._max_sequences = max_sequences
        self.prefill_rows, self.mixed_rows = prefill_rows, mixed_rows
        self._step: Scheduled | None = None
        self._n_steps = 0
        self._turns: dict[Hashable, int] = {}  # by owner: the last step with rows of its prompts, or when it came

    @property
    def n_decoding(self) -> int:
        """Running sequences with one token to evaluate."""
        return sum([len(sequence.tokens) - sequence.n_computed == 1 for sequence in self.running])

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence: it joins at the next step that has room. The caller bounds the queue.

        Raises RequestError if it would not fit even alone.
        """
        if not sequence.tokens or sequence.max_new < 0:
            raise RequestError(
                f"a prompt of {sequence.n_prompt} tokens and at most {sequence.max_new} new ones; expected 1 or more, "
                "and 0 or more"
            )
        if self._most_pages(sequence) > self.pool.n_pages:
            raise does_not_fit(sequence, "the KV cache has", self.pool.n_pages * self.pool.page_size)
        owners = {other.owner for other in [*self.running, *self.waiting]}
        self._turns = {owner: self._turns[owner] for owner in owners}
        self._turns.setdefault(sequence.owner, self._n_steps)
        self.waiting.append(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Remove a sequence at once, also while a step with its rows runs. Does nothing if it has finished."""
        if sequence.state == "finished":
            return
        if sequence.state == "running":
            self._leave(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.state = "finished"

    def schedule(self) -> Scheduled | None:
        """The next step; None if nothing is left to evaluate. It replaces a step that was not accepted."""
        step = Scheduled()
        self._n_steps += 1
        chunks = self._chunks(self.mixed_rows if self.n_decoding else self.prefill_rows)
        for sequence in self.running:  # preemption removes from its end
            n_left = len(sequence.tokens) - sequence.n_computed
            count = 1 if n_left == 1 else chunks.get(sequence, 0)
            if count and self._get_pages(sequence, sequence.n_computed + count):
                self._add_rows(step, sequence, count)
                if sequence in chunks:
                    step.owners.add(sequence.owner)
        if self.running and not step.spans:  # the only one with rows was preempted
            return self.schedule()
        self._step = step if step.spans else None
        return self._step

    def schedule_alone(self, sequence: Sequence) -> Scheduled | None:
        """The step that `schedule` would make if this running sequence were the only one; None if it waits."""
        step = Scheduled()
        count = min(len(sequence.tokens) - sequence.n_computed, self.prefill_rows)
        if sequence.state == "running" and self._get_pages(sequence, sequence.n_computed + count):
            self._add_rows(step, sequence, count)
        self._step = step if step.spans else None
        return self._step

    def accept(self, step: Scheduled, chosen: list[int], whole: Container[Sequence] = ()) -> list[Event]:
        """Advance the sequences of the last scheduled step by the tokens `chosen` for its sampled rows.

        whole: sequences whose grammar is complete with this token, and which therefore end.
        Rows of sequences that were cancelled meanwhile are dropped. Raises ClusterDefect if the step is not the last
        scheduled one, or after a rewind.
        """
        if step is not self._step:
            raise ClusterDefect("a step was accepted that is not the last one scheduled")
        self._step = None
        self._turns.update(dict.fromkeys(step.owners, self._n_steps))
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
        """All keys and values are lost: every sequence is evaluated again. n_pages: the new size of the pool; None: as
        before.

        Sequences that no longer fit leave, and are returned.
        """
        while self.running:
            self._preempt(self.running[-1])
        self._step = None
        self.pool.reset(self.pool.n_pages if n_pages is None else n_pages)
        too_long = [sequence for sequence in self.waiting if self._most_pages(sequence) > self.pool.n_pages]
        for sequence in too_long:
            self.cancel(sequence)
        return too_long

    def _most_pages(self, sequence: Sequence) -> int:
        """The pages of a sequence when it ends. The last token that is generated gets no keys and values."""
        return self.pool.n_pages_of(sequence.n_prompt + max(sequence.max_new - 1, 0))

    def _chunks(self, n_rows: int) -> dict[Sequence, int]:
        """The rows of the next step for each prompt, `n_rows` in all, by turns; admits sequences whose turn it is."""
        chunks: dict[Sequence, int] = {}
        prompts = [sequence for sequence in self.running if len(sequence.tokens) - sequence.n_computed > 1]
        if not prompts and not self.waiting:
            return chunks
        turns = self._turns
        running, waiting = (deque(sorted(of, key=lambda one: turns[one.owner])) for of in (prompts, self.waiting))
        while n_rows and (running or waiting):
            if waiting and (not running or turns[waiting[0].owner] < turns[running[0].owner]):
                chosen = waiting.popleft()
                if not self._admit(chosen, chunks):
                    waiting.clear()
                    continue
            else:
                chosen = running.popleft()
                if chosen.state == "waiting":  # the one admitted just now has its pages
                    continue
            chunks[chosen] = min(len(chosen.tokens) - chosen.n_computed, n_rows)
            n_rows -= chunks[chosen]
        return chunks

    def _admit(self, sequence: Sequence, chunks: dict[Sequence, int]) -> bool:
        """Admit a waiting sequence if it fits beside these chunks, with the pages in which its prefix is cached."""
        if len(self.running) >= self._max_sequences:
            return False
        pool = self.pool
        pages = pool.find(sequence.tokens[:-1]) if sequence.max_new else []
        if sequence.max_new and self._next_page_will_be_filled(sequence, pages):
            return False
        n_idle = sum(not pool.n_users(page) for page in pages)
        n_needed = pool.n_pages_of(len(sequence.tokens)) - len(pages)
        for other in self.running:  # its pages of this step, and one more, if it can need one
            n_next = pool.n_pages_of(other.n_computed + chunks.get(other, 1)) + 1
            n_needed += max(min(n_next, self._most_pages(other)) - len(other.pages), 0)
        if not self._make_room(sequence, n_needed - (pool.n_available - n_idle), pages):
            return False
        self.waiting.remove(sequence)
        self.running.append(sequence)
        pool.share(pages)
        sequence.state, sequence.pages, sequence.n_computed = "running", pages, len(pages) * pool.page_size
        if sequence.n_cached is None:
            sequence.n_cached = sequence.n_computed
        return True

    def _make_room(self, sequence: Sequence, n_pages: int, found: list[int]) -> bool:
        """Whether a waiting sequence gets `n_pages` more than are available, beside those that it has `found`."""
        if n_pages <= 0:
            return True
        running, taken_from = list(self.running), []
        n_of = Counter(other.owner for other in running)
        share = self.pool.n_pages // (len(n_of) + 1)
        if sequence.owner in n_of or self.pool.n_pages_of(len(sequence.tokens)) > share:
            return False
        while n_pages > 0:
            owner, n_running = max(n_of.items(), key=lambda one: one[1], default=(None, 0))
            if n_running < 2:
                return False
            youngest = next(other for other in reversed(running) if other.owner == owner)
            n_pages -= sum(self.pool.n_users(page) == 1 and page not in found for page in youngest.pages)
            n_of[owner] -= 1
            running.remove(youngest)
            taken_from.append(youngest)
        for other in taken_from:
            self._preempt(other)
            self.n_preemptions += 1
        return True

    def _next_page_will_be_filled(self, sequence: Sequence, pages: list[int]) -> bool:
        """Whether a running sequence is going to fill the page that this one could share after `pages`."""
        start = len(pages) * self.pool.page_size
        end = start + self.pool.page_size
        tokens = sequence.tokens[start:end]
        return end < len(sequence.tokens) and any(
            other.tokens[start:end] == tokens and other.pages[: len(pages)] == pages for other in self.running
        )

    def _get_pages(self, sequence: Sequence, n_positions: int) -> bool:
        """Give a running sequence pages for its first `n_positions`. False if it was preempted itself."""
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
        """Positions `start` to `end` now have keys and values: index the pages that became full."""
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
        """Preempt a running sequence: it waits, first in the queue, and is evaluated again later."""
        self._leave(sequence)
        sequence.state = "waiting"
        self.waiting.appendleft(sequence)

    def _leave(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.pages)
        sequence.pages, sequence.n_computed = [], 0
