"""Every order of what can happen to sequences, against a plain model: memory, and texts generated one at a time.

The model's keys and values of a position are all tokens up to it, made from those of the position before as it is read
from memory. So a page that is lost, shared too early, overwritten or found for another text shows in what is read.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Hashable

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from dllama_zmq.root.pages import PagePool
from dllama_zmq.root.scheduler import Event, Finished, Prefilled, Scheduled, Scheduler, Token
from dllama_zmq.root.sequence import Sequence

PAGE = 3
STOP = 3
N_OWNERS = 3

prompts = st.lists(st.integers(0, 1), min_size=1, max_size=3 * PAGE)


def next_token(text: tuple[int, ...]) -> int:
    chance = hash((5, *text)) // 7 % 12
    return STOP if chance == 0 else chance % 2


def text_alone(prompt: list[int], max_new: int, stops: bool) -> tuple[list[int], str]:
    text = list(prompt)
    for _ in range(max_new):
        token = next_token(tuple(text))
        if stops and token == STOP:
            return text, "stop"
        text.append(token)
    return text, "length"


class Memory:
    """What each position of each page holds: the tokens up to it, or None where that is unknown."""

    def __init__(self, n_pages: int) -> None:
        self.pages: list[list[tuple[int, ...] | None]] = [[None] * PAGE for _ in range(n_pages)]

    def read(self, pages: list[int], position: int) -> tuple[int, ...] | None:
        return self.pages[pages[position // PAGE]][position % PAGE]

    def write(self, step: Scheduled, done: bool = True) -> None:
        tokens = iter(step.tokens)
        for span in step.spans:
            for position in range(span.start, span.start + span.count):
                before = self.read(span.pages, position - 1) if position else ()
                assert before is not None, "a position was evaluated before the one before it"
                held = (*before, next(tokens))
                self.pages[span.pages[position // PAGE]][position % PAGE] = held
        assert next(tokens, None) is None
        if not done:  # each position has been written, and nobody knows what
            for span in step.spans:
                for position in range(span.start, span.start + span.count):
                    self.pages[span.pages[position // PAGE]][position % PAGE] = None


class Sequences(RuleBasedStateMachine):
    added: Bundle[Sequence] = Bundle("added")

    @initialize(
        n_pages=st.integers(3, 8),
        max_sequences=st.integers(1, 6),
        prefill_rows=st.integers(1, 11),
        mixed_rows=st.integers(1, 6),
    )
    def begin(self, n_pages: int, max_sequences: int, prefill_rows: int, mixed_rows: int) -> None:
        self.pool = PagePool(n_pages, PAGE)
        self.memory = Memory(n_pages)
        self.max_sequences, self.prefill_rows, self.mixed_rows = max_sequences, prefill_rows, mixed_rows
        self.scheduler = Scheduler(self.pool, max_sequences, prefill_rows, mixed_rows)
        self.live: list[Sequence] = []  # in the order in which they were admitted, then of arrival
        self.n_steps, self.dealt = 0, []
        self.turns: dict[Hashable, int] = {}  # the last step with rows of an owner's prompts, or when it came
        self.n_idle, self.before = 0, None  # steps in which the one that was admitted first has not advanced
        self.all: list[Sequence] = []
        self.given: dict[Sequence, list[int]] = {}
        self.evaluated: dict[Sequence, int] = {}  # the position after the last evaluated one, since the last reset

    # What happens

    @rule(
        target=added,
        prompt=prompts,
        max_new=st.integers(0, 20),
        stops=st.booleans(),
        n=st.integers(1, 3),
        owner=st.integers(0, N_OWNERS - 1),
    )
    def add(self, prompt: list[int], max_new: int, stops: bool, n: int, owner: int) -> object:
        return multiple(*[self.add_one(prompt, max_new, stops, owner) for _ in range(n)])

    @precondition(lambda self: self.all)
    @rule(target=added, earlier=added, length=st.integers(1, 30), more=prompts, max_new=st.integers(1, 20))
    def add_continued(self, earlier: Sequence, length: int, more: list[int], max_new: int) -> Sequence:
        """The next turn of a conversation, or another end of the same text."""
        return self.add_one([*earlier.tokens[:length], *more], max_new, True, earlier.owner)

    def add_one(self, prompt: list[int], max_new: int, stops: bool, owner: Hashable) -> Sequence:
        room = self.pool.n_pages * PAGE
        max_new = min(max_new, room)
        stop_ids = frozenset([STOP] if stops else [])
        sequence = Sequence(prompt[: room - max(max_new - 1, 0)], None, max_new, stop_ids, owner=owner)
        owners = {live.owner for live in self.live}
        self.turns = {owner: turn for owner, turn in self.turns.items() if owner in owners}
        self.turns.setdefault(owner, self.n_steps)
        self.scheduler.add(sequence)
        self.live.append(sequence)
        self.all.append(sequence)
        self.given[sequence] = []
        return sequence

    @rule(steps=st.lists(st.sampled_from([True, True, True, False]), min_size=1, max_size=20))
    def run(self, steps: list[bool]) -> None:
        """Steps that end, and those that fail."""
        for ends in steps:
            if ends:
                self.step()
            elif self.live:
                self.memory.write(self.schedule(), done=False)

    @precondition(lambda self: self.all)
    @rule(sequence=added, ends=st.booleans())
    def run_alone(self, sequence: Sequence, ends: bool) -> None:
        step = self.scheduler.schedule_alone(sequence)
        self.dealt = []
        self.sequences_are_in_order()
        if step is None:
            assert sequence.state != "running"
            return
        self.check_spans(step)
        n_left = len(sequence.tokens) - sequence.n_computed
        assert step.sequences == [sequence]
        assert step.spans[0].count == min(n_left, self.prefill_rows)
        if ends:
            self.evaluate(step)
        else:
            self.memory.write(step, done=False)

    @precondition(lambda self: self.all)
    @rule(sequence=added, in_step=st.booleans())
    def cancel(self, sequence: Sequence, in_step: bool) -> None:
        step = self.schedule() if in_step and self.live else None
        self.scheduler.cancel(sequence)
        assert sequence.state == "finished"
        if sequence in self.live:
            self.live.remove(sequence)
        if step is not None:
            self.evaluate(step)

    @rule(in_step=st.booleans(), n_pages=st.none() | st.integers(1, 8))
    def rewind(self, in_step: bool, n_pages: int | None) -> None:
        """A worker is lost, and the cluster is whole again."""
        if in_step and self.live:
            self.schedule()
        left = self.scheduler.rewind(n_pages)
        room = self.pool.n_pages * PAGE
        assert left == [s for s in self.live if s.n_prompt + max(s.max_new - 1, 0) > room]
        self.live = [sequence for sequence in self.live if sequence not in left]
        self.memory = Memory(self.pool.n_pages)
        self.evaluated.clear()

    def step(self) -> None:
        if not self.live:
            assert self.scheduler.schedule() is None
            return
        step = self.schedule()
        first = self.live[0]
        before = first, len(first.tokens), first.n_computed
        self.evaluate(step)
        advanced = first.state == "finished" or (first, len(first.tokens), first.n_computed) != before
        self.n_idle = 0 if advanced else self.n_idle + 1 if before == self.before else 1
        self.before = before
        assert self.n_idle < N_OWNERS, "each owner has had its turn, and it has not advanced"

    def schedule(self) -> Scheduled:
        decoding = [s for s in self.scheduler.running if len(s.tokens) == s.n_computed + 1]
        waiting = list(self.scheduler.waiting)
        n_preemptions = self.scheduler.n_preemptions
        step = self.scheduler.schedule()
        assert step is not None
        self.n_steps += 1
        preempted = self.scheduler.n_preemptions > n_preemptions
        self.live = [*self.scheduler.running, *self.scheduler.waiting]
        assert len(set(step.sequences)) == len(step.sequences) == len(step.spans)
        assert step.sequences == [s for s in self.live if s in step.sequences], "in order"
        for sequence in decoding:
            assert sequence in step.sequences or sequence.state == "waiting", "a decoding sequence has a row"
        budget = self.mixed_rows if decoding else self.prefill_rows
        dealt = {s: span.count for s, span in zip(step.sequences, step.spans, strict=True) if s not in decoding}
        rows = list(dealt.values())
        assert sum(rows) <= budget
        prompts = [s for s in self.scheduler.running if s not in decoding]
        left_over = [
            s for s in prompts if s not in step.sequences or s.n_computed + span_of(step, s).count < len(s.tokens)
        ]
        assert not left_over or preempted or sum(rows) == budget, "rows are left while somebody needs them"
        self.sequences_are_in_order()
        self.check_spans(step)
        for sequence in waiting:
            if sequence.state == "running" and sequence.max_new:
                assert not self.fills_next(step, sequence, sequence.n_computed // PAGE)
        has_room = sum(rows) < budget and len(self.scheduler.running) < self.max_sequences and not preempted
        if has_room and self.scheduler.waiting:
            assert not self.could_run(min(self.scheduler.waiting, key=lambda s: self.turns[s.owner]))
        self.dealt = list(dealt)
        return step

    def could_run(self, sequence: Sequence) -> bool:
        """Whether there are the pages it needs, and one for each that runs, and nobody fills one it will find."""
        pages = self.pool.find(sequence.tokens[:-1]) if sequence.max_new else []
        idle = [page for page in pages if not self.pool.n_users(page)]
        n_needed = -(-len(sequence.tokens) // PAGE) - len(pages)
        for running in self.scheduler.running:
            n_most = -(-(running.n_prompt + max(running.max_new - 1, 0)) // PAGE)
            n_needed += len(running.pages) < n_most
        if n_needed > self.pool.n_available - len(idle):
            return False
        return not (sequence.max_new and self.is_filled_by_another(sequence, len(pages)))

    def fills_next(self, step: Scheduled, sequence: Sequence, n_found: int) -> bool:
        """Whether somebody before it fills in this step the page that it could find after `n_found` pages."""
        end = (n_found + 1) * PAGE
        before = itertools.takewhile(lambda one: one[0] is not sequence, zip(step.sequences, step.spans, strict=True))
        return end < len(sequence.tokens) and any(
            span.start < end <= span.start + span.count and other.tokens[:end] == sequence.tokens[:end]
            for other, span in before
        )

    def is_filled_by_another(self, sequence: Sequence, n_found: int) -> bool:
        """Whether a running sequence is going to fill the page that it could find after `n_found` pages."""
        end = (n_found + 1) * PAGE
        return end < len(sequence.tokens) and any(
            other.tokens[:end] == sequence.tokens[:end] for other in self.scheduler.running
        )

    def check_spans(self, step: Scheduled) -> None:
        n_rows, sampled, written = 0, [], set()
        for sequence, span in zip(step.sequences, step.spans, strict=True):
            end = span.start + span.count
            assert span.count >= 1
            assert step.tokens[n_rows : n_rows + span.count] == sequence.tokens[span.start : end]
            n_rows += span.count
            if sequence in self.evaluated:
                assert span.start == self.evaluated[sequence], "the tokens are evaluated in order, none twice"
            else:
                assert span.start % PAGE == 0
                assert sequence.max_new or not span.start, "one that generates nothing has a row for each token"
            assert len(span.pages) == -(-end // PAGE)
            pages = span.pages[span.start // PAGE :]
            assert not written & set(pages), "two sequences write to one page"
            written |= set(pages)
            if end == len(sequence.tokens) and sequence.max_new:
                sampled.append((n_rows - 1, sequence))
        assert step.sampled == sampled
        assert n_rows == len(step.tokens)

    def evaluate(self, step: Scheduled) -> None:
        self.memory.write(step)
        chosen = []
        for row, sequence in step.sampled:
            span = span_of(step, sequence)
            held = self.memory.read(span.pages, span.start + span.count - 1)
            assert step.tokens[row] == held[-1]
            chosen.append(next_token(held))
        for sequence, span in zip(step.sequences, step.spans, strict=True):
            if sequence in self.live:
                self.evaluated[sequence] = span.start + span.count
        self.turns.update((sequence.owner, self.n_steps) for sequence in self.dealt)
        for event in self.scheduler.accept(step, chosen):
            self.take_in(event)
        self.sequences_are_in_order()

    def take_in(self, event: Event) -> None:
        sequence = event.sequence
        assert sequence in self.live
        if isinstance(event, Token):
            self.given[sequence].append(event.token)
        elif isinstance(event, Prefilled):
            assert not self.given[sequence]
            assert 0 < event.done <= event.total == sequence.n_prompt
        elif isinstance(event, Finished):
            self.live.remove(sequence)
            prompt = sequence.tokens[: sequence.n_prompt]
            text, reason = text_alone(prompt, sequence.max_new, bool(sequence.stop_ids))
            assert (sequence.tokens, event.reason) == (text, reason)

    # What is always true

    @invariant()
    def sequences_are_in_order(self) -> None:
        scheduler = self.scheduler
        assert [*scheduler.running, *scheduler.waiting] == self.live
        assert len(scheduler.running) <= self.max_sequences
        for sequence in self.all:
            where = "running" if sequence in scheduler.running else "waiting" if sequence in self.live else "finished"
            assert sequence.state == where
            assert sequence.tokens[sequence.n_prompt :] == self.given[sequence]
            if where != "running":
                assert (sequence.n_computed, sequence.pages) == (0, [])
                self.evaluated.pop(sequence, None)

    @invariant()
    def pages_have_their_users_and_none_is_lost(self) -> None:
        used = [page for sequence in self.scheduler.running for page in sequence.pages]
        assert all(self.pool.n_users(page) == used.count(page) for page in used)
        assert self.pool.n_in_use == len(set(used))
        pool = copy.deepcopy(self.pool)
        left = list(iter(pool.take, None))
        assert sorted([*left, *set(used)]) == list(range(pool.n_pages))
        assert pool.n_cached == 0

    @invariant()
    def pages_hold_what_their_sequences_have_computed(self) -> None:
        for sequence in self.scheduler.running:
            assert sequence.n_computed == self.evaluated.get(sequence, sequence.n_computed)
            assert sequence.n_computed < len(sequence.tokens)
            self.check_held(sequence.tokens, sequence.pages, sequence.n_computed)
            for i, page in enumerate(sequence.pages):
                if self.pool.n_users(page) > 1:
                    assert (i + 1) * PAGE <= sequence.n_computed, "a page is shared that is not full"

    @invariant()
    def found_pages_hold_what_was_looked_for(self) -> None:
        for sequence in self.all:
            found = self.pool.find(sequence.tokens)
            self.check_held(sequence.tokens, found, len(found) * PAGE)

    @invariant()
    def equal_full_pages_are_one(self) -> None:
        for a, b in itertools.combinations(self.scheduler.running, 2):
            n = min(a.n_computed, b.n_computed) // PAGE
            for i in range(n):
                assert (a.pages[i] == b.pages[i]) == (a.tokens[: (i + 1) * PAGE] == b.tokens[: (i + 1) * PAGE])

    def check_held(self, tokens: list[int], pages: list[int], n: int) -> None:
        for position in range(n):
            assert self.memory.read(pages, position) == tuple(tokens[: position + 1])

    def teardown(self) -> None:
        if not hasattr(self, "live"):
            return
        most = sum(sequence.n_prompt + sequence.max_new for sequence in self.live)
        for _ in range(most):
            self.step()
        assert not self.live, "all have ended, as the oldest has gone on in each step"
        assert self.pool.n_in_use == 0


def span_of(step: Scheduled, sequence: Sequence):
    return step.spans[step.sequences.index(sequence)]


TestSequences = Sequences.TestCase
