"""What tools/soak.py compares and counts: it must see a wrong answer, and a process that grows or is gone."""

from __future__ import annotations

import os
import random

import pytest
from soak_requests import Answers, Request, draw_requests
from soak_usage import Usage

CHAT, TEXTS = Request("chat", "/v1/chat/completions", {}), Request("completion", "/v1/completions", {})


def delta(index: int, said: dict[str, object], ended: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": index, "delta": said, "finish_reason": ended}]}


def test_the_events_of_a_stream_add_up_to_the_whole_reply() -> None:
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "look", "arguments": '{"n": '}}
    rest = {"index": 0, "function": {"arguments": "1}"}}
    streamed: Answers = {}
    for event in (
        delta(0, {"role": "assistant", "content": "Once "}),
        delta(1, {"role": "assistant", "content": None, "tool_calls": [call]}),
        delta(0, {"content": "upon"}),
        delta(1, {"tool_calls": [rest]}),
        delta(0, {}, "length"),
        delta(1, {}, "tool_calls"),
    ):
        CHAT.add(streamed, event)
    whole = {"name": "look", "arguments": '{"n": 1}'}
    reply = {
        "choices": [
            {"index": 0, "message": {"content": "Once upon"}, "finish_reason": "length"},
            {
                "index": 1,
                "message": {"content": None, "tool_calls": [{"function": whole}]},
                "finish_reason": "tool_calls",
            },
        ]
    }
    assert streamed == CHAT.answers(reply) == {0: ("Once upon", "length"), 1: ('look{"n": 1}', "tool_calls")}


def test_another_text_or_another_end_is_another_answer() -> None:
    def reply(text: str, ended: str) -> Answers:
        return TEXTS.answers({"choices": [{"index": 0, "text": text, "finish_reason": ended}]})

    assert reply("a b", "stop") == reply("a b", "stop")
    assert reply("a b", "stop") != reply("a c", "stop")
    assert reply("a b", "stop") != reply("a b", "length")


def test_one_seed_draws_the_same_requests() -> None:
    assert draw_requests(random.Random(1), 3) == draw_requests(random.Random(1), 3)
    assert draw_requests(random.Random(1), 3) != draw_requests(random.Random(2), 3)


def used(*last: tuple[int, float, int, int]) -> Usage:
    """Samples of a process of 100 MB, 10 descriptors and 5 threads after the warm-up, and of these at the end."""
    samples = [(share, {"front": (7, (megabytes, 10, 5))}) for share, megabytes in ((0.1, 50.0), (0.3, 100.0))]
    pid, *use = last[0]
    return Usage([*samples, (0.6, {"front": (7, (100.0, 10, 5))}), (1.0, {"front": (pid, (use[0], use[1], use[2]))})])


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ((7, 108.0, 14, 9), []),
        ((7, 110.0, 10, 5), ["front: resident MB grew from 100 to 110, more than 109"]),
        ((7, 100.0, 15, 5), ["front: descriptors grew from 10 to 15, more than 14"]),
        ((7, 100.0, 10, 11), ["front: threads grew from 5 to 11, more than 9"]),
        ((8, 100.0, 10, 5), ["front: process 7 is gone"]),
    ],
)
def test_what_grows_after_the_warm_up_or_is_gone_is_named(last: tuple[int, float, int, int], words: list[str]) -> None:
    assert list(used(last).wrong(set())) == words


def test_a_process_that_was_killed_may_be_another_one() -> None:
    assert list(used((8, 100.0, 10, 5)).wrong({"front"})) == []


def test_a_sample_has_what_the_root_and_its_children_use() -> None:
    usage = Usage()
    usage.sample(0.0, os.getpid(), {os.getpid(): "root"})
    pid, (megabytes, descriptors, threads) = usage.samples[0][1]["root"]
    assert pid == os.getpid()
    assert megabytes > 1
    assert descriptors > 2
    assert threads >= 1
