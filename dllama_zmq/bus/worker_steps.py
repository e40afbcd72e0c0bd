"""A worker's side of a step: which messages it acts on, and how its wait for a sum ends. Pure, as `steps.py`."""

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
    MoreCandidates,
    Partial,
    Ping,
    Resend,
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
    """The step cannot end: `message` of the root makes it void."""

    def __init__(self, message: Message) -> None:
        super().__init__(f"void by {type(message).__name__}")
        self.message = message


class WorkerSteps:
    """A worker's side of all steps. epoch: of the last beacon heard; step, stage: of its last part.

    wait_s: seconds that it has waited for sums since the step began.
    """

    def __init__(self, sync: Sync, dim: int, silence_s: float) -> None:
        """silence_s: seconds without a message within a step after which the root counts as lost."""
        self._sync, self._dim, self._silence_s = sync, dim, silence_s
        self.epoch = self.step = self.stage = 0
        self.wait_s = 0.0
        self.wake_at = 0.0
        """Latest time for the next call of `hear`, while it waits."""
        self._since = 0.0
        self._open: deque[int] = deque()  # open stages: their sum has not come
        self._lacking = (0, 0, 0)

    # calls of the worker

    def accepts(self, message: Step | MoreCandidates) -> bool:
        """Whether an idle worker acts on the message; not if it is of another epoch, late, or a repetition."""
        if message.epoch != self.epoch:
            return False
        if isinstance(message, Step):
            return message.step > self.step
        return (message.step, message.stage) == (self.step, self.stage + 1)

    def begin(self, step: int) -> None:
        """Begin a step."""
        self.step, self.stage, self.wait_s = step, 0, 0.0
        self._open.clear()

    def begin_stage(self) -> int:
        """Begin a stage; returns its number."""
        self.stage += 1
        return self.stage

    def expect(self) -> None:
        """Expect the sum of this stage."""
        self._open.append(self.stage)

    def start(self, own: U8) -> list[Action]:
        """Begin the next stage. own: this node's partial sum (T, bytes of a row)."""
        self.begin_stage()
        self.expect()
        head = ArrayHead(self._sync, len(own), self._dim)
        return [_send(Partial(self.epoch, self.step, self.stage, [head]), [own.data.cast("B")])]

    def answer(self, compute_s: float, paused_s: float, arrays: Sequence[tuple[ArrayHead, Frame]]) -> list[Action]:
        """Send the candidates of the last stage, or of the rows asked for again."""
        stage, heads = self.begin_stage(), [head for head, _ in arrays]
        message = Candidates(self.epoch, self.step, stage, compute_s, paused_s, self.wait_s, heads)
        return [_send(message, [frame for _, frame in arrays])]

    def answer_ping(self, ping: Ping) -> list[Action]:
        """Answer the second ping of a stage whose input is missing with Resend. At the first ping it may still be on
        its way."""
        lacking = (ping.epoch, ping.step, ping.stage)
        if ping.epoch != self.epoch or lacking[1:] <= (self.step, self.stage):
            return []
        before, self._lacking = self._lacking, lacking
        return [_send(Resend(*lacking))] if lacking == before else []

    # calls while it waits

    def wait(self, now: float, arrived: tuple[Message, list[Frame]] | None = None) -> list[Action]:
        """Start waiting for the sum of the oldest open stage. arrived: a message received already."""
        self._since, self.wake_at = now, now + self._silence_s
        return self.hear(now, arrived)

    def hear(self, now: float, arrived: tuple[Message, list[Frame]] | None = None) -> list[Action]:
        """The actions that follow from a message of the root, if one came, and from the time."""
        if arrived is None:
            silent = f"no word from the root for {self._silence_s:.0f} s in step {self.step}"
            return [Failed(RootLost(silent))] if now >= self.wake_at else []
        self.wake_at = now + self._silence_s  # any message shows that the root is alive
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
