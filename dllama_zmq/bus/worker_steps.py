"""A step as a worker sees it: which messages it acts on, and how its wait for a sum ends. Pure, as `steps.py`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from dllama_zmq.bus.codec import encode, kind_of
from dllama_zmq.bus.messages import (
    ArrayHead,
    Beacon,
    Bye,
    Candidates,
    Frame,
    Message,
    Missed,
    More,
    Partial,
    Ping,
    Step,
    Sum,
    Welcome,
)
from dllama_zmq.bus.roster import ROOT
from dllama_zmq.bus.steps import Action, Done, Failed, Part, Send
from dllama_zmq.errors import RootLost
from dllama_zmq.quants import U8
from dllama_zmq.spec import Sync


class StepVoid(Exception):
    """The step will never end: the root said something that makes it void. `message` is what it said."""

    def __init__(self, message: Message) -> None:
        super().__init__(f"void by {type(message).__name__}")
        self.message = message


class WorkerSteps:
    """A worker's side of all steps. epoch: of the last beacon heard; step, stage: of its last part.

    wait_s: seconds that it has waited for sums since the step began.
    """

    def __init__(self, sync: Sync, dim: int, silence_s: float) -> None:
        """silence_s: how long the root may say nothing in a step."""
        self._sync, self._dim, self._silence_s = sync, dim, silence_s
        self.epoch = self.step = self.stage = 0
        self.wait_s = 0.0
        self.wake_at = 0.0
        """When to call `hear` at the latest, while it waits."""
        self._since = 0.0
        self._open: deque[int] = deque()  # stages whose sum has not come
        self._lacking = (0, 0, 0)

    # What the worker does

    def accepts(self, message: Step | More) -> bool:
        """Whether an idle worker is to act on it: else it is of another epoch, late, or sent twice."""
        if message.epoch != self.epoch:
            return False
        if isinstance(message, Step):
            return message.step > self.step
        return (message.step, message.stage) == (self.step, self.stage + 1)

    def begin(self, step: int) -> None:
        """A step begins."""
        self.step, self.stage, self.wait_s = step, 0, 0.0
        self._open.clear()

    def begin_stage(self) -> int:
        """The number of the stage that begins."""
        self.stage += 1
        return self.stage

    def expect(self) -> None:
        """The sum of this stage is to come."""
        self._open.append(self.stage)

    def start(self, own: U8) -> list[Action]:
        """The next stage begins; `own` (T, bytes of a row) is this node's partial sum."""
        self.begin_stage()
        self.expect()
        head = ArrayHead(self._sync, len(own), self._dim)
        return [_send(Partial(self.epoch, self.step, self.stage, [head]), [own.data.cast("B")])]

    def answer(self, compute_s: float, paused_s: float, arrays: Sequence[tuple[ArrayHead, Frame]]) -> list[Action]:
        """The last stage, or the one that was asked for: these candidates."""
        stage, heads = self.begin_stage(), [head for head, _ in arrays]
        message = Candidates(self.epoch, self.step, stage, compute_s, paused_s, self.wait_s, heads)
        return [_send(message, [frame for _, frame in arrays])]

    def answer_ping(self, ping: Ping) -> list[Action]:
        """Ask again for what the root believes this worker to have, if it asks twice: once, it may be on its way."""
        lacking = (ping.epoch, ping.step, ping.stage)
        if ping.epoch != self.epoch or lacking[1:] <= (self.step, self.stage):
            return []
        before, self._lacking = self._lacking, lacking
        return [_send(Missed(*lacking))] if lacking == before else []

    # What happens while it waits

    def wait(self, now: float, arrived: tuple[Message, list[Frame]] | None = None) -> list[Action]:
        """From now on the sum of the stage that was begun first is waited for. arrived: a message that is here."""
        self._since, self.wake_at = now, now + self._silence_s
        return self.hear(now, arrived)

    def hear(self, now: float, arrived: tuple[Message, list[Frame]] | None = None) -> list[Action]:
        """What follows from a message of the root, if one came, and from the time."""
        if arrived is None:
            silent = f"no word from the root for {self._silence_s:.0f} s in step {self.step}"
            return [Failed(RootLost(silent))] if now >= self.wake_at else []
        self.wake_at = now + self._silence_s  # whatever it said, the root is alive
        message, frames = arrived
        if isinstance(message, Sum):
            if (message.epoch, message.step, message.stage) == (self.epoch, self.step, self._open[0]):
                self._open.popleft()
                self.wait_s += now - self._since
                return [Done([Part(0, ROOT, message, frames)])]
        elif isinstance(message, Bye | Welcome) or (isinstance(message, Beacon) and message.epoch != self.epoch):
            return [Failed(StepVoid(message))]  # another epoch, or none
        elif isinstance(message, Ping):
            return self.answer_ping(message)
        return []


def _send(message: Message, arrays: Sequence[Frame] = ()) -> Send:
    return Send(b"", ROOT, kind_of(message), encode(message, arrays))
