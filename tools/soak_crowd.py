"""Clients of the API for some minutes: what they ask for, how it ended, and whether it was what it should be.

First each request is sent alone. Then all clients send these requests again and again, whole or streamed; some leave
in mid-answer, some vanish without a word. Each answer must be the first one, byte for byte.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
from soak_requests import Answers, Request, body_of, draw_requests

ANSWER_S = 180.0
"""For an answer: longer than the 120 s that a cluster waits for a lost worker."""
IDLE_S = 30.0
HEALTH_EVERY_S = 0.25
N_OF_EACH_KIND = 4
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: the connection ends by RST
_REFUSED = "refused with 503, asked again"


@dataclass
class Found:
    """What happened.

    ended: requests by kind and how they ended. errors: by their words. health_s: seconds of each /health. tokens: when
    some came. begun: set when all requests have been answered alone.
    """

    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    health_s: list[float] = field(default_factory=list)
    n_ill: int = 0
    tokens: list[float] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)


@dataclass
class Crowd:
    """`n_clients` clients of the API at `url` until `until`. `disturbed`: nodes may be missing, as the API promises."""

    url: str
    n_clients: int
    minutes: float
    seed: int
    disturbed: bool
    found: Found = field(default_factory=Found)
    expected: dict[int, Answers] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    until: float = 0.0

    async def run(self) -> None:
        """All of it; `found` has what happened."""
        limits = httpx.Limits(max_connections=self.n_clients + 4)
        async with httpx.AsyncClient(base_url=self.url, timeout=ANSWER_S, limits=limits) as http:
            await self._first(http)
            self.until = time.monotonic() + 60 * self.minutes
            self.found.begun.set()
            clients = [self._client(http, number) for number in range(self.n_clients)]
            await asyncio.gather(self._probe(http), self._watch(http), *clients)
            if not await self._idle(http):
                self.found.errors[f"the cluster still answers {IDLE_S:.0f} s after the last client has left"] += 1

    async def _first(self, http: httpx.AsyncClient) -> None:
        """Ask each request alone. A kind that the model cannot answer is left out."""
        left_out, drawn = set(), draw_requests(random.Random(self.seed), N_OF_EACH_KIND)
        print(f"asking each of {len(drawn)} requests alone", flush=True)
        for request in drawn:
            reply = await http.post(request.path, content=body_of(request, stream=False))
            if reply.status_code != 200:
                left_out.add(f"{request.kind}: {reply.text[:200]}")
                continue
            self.expected[len(self.requests)] = request.answers(reply.json())
            self.requests.append(request)
        for words in sorted(left_out):
            print(f"left out: {words}", flush=True)
            if self.disturbed:
                self.found.errors[f"left out: {words}"] += 1

    async def _client(self, http: httpx.AsyncClient, number: int) -> None:
        draw = random.Random(f"{self.seed} {number}")
        while time.monotonic() < self.until:
            index = draw.randrange(len(self.requests))
            request = self.requests[index]
            try:
                async with asyncio.timeout(ANSWER_S):
                    how = await self._one(http, request, self.expected[index], draw)
            except TimeoutError:
                how = self._failed(f"no end within {ANSWER_S:.0f} s")
            except (httpx.HTTPError, OSError, ValueError, KeyError) as error:
                how = self._failed(f"{type(error).__name__}: {error}"[:200])
            self.found.ended[request.kind, how] += 1
            if how == _REFUSED:
                await asyncio.sleep(2.0)  # as Retry-After says

    async def _one(self, http: httpx.AsyncClient, request: Request, expected: Answers, draw: random.Random) -> str:
        """Ask in one of several ways; how it ended."""
        way, n_read = draw.random(), draw.randint(0, 20)
        if way < 0.15:
            return await self._vanish(request, n_read)
        if way < 0.45 or not request.can_stream:
            reply = await http.post(request.path, content=body_of(request, stream=False))
            if reply.status_code != 200:
                return self._refused(reply, reply.text)
            return self._compared(request, request.answers(reply.json()), expected, "whole")
        async with http.stream("POST", request.path, content=body_of(request, stream=True)) as reply:
            if reply.status_code != 200:
                return self._refused(reply, (await reply.aread()).decode())
            return await self._read(request, reply, expected, n_read if way < 0.65 else None)

    async def _read(self, request: Request, reply: httpx.Response, expected: Answers, n_read: int | None) -> str:
        """Read a stream, as far as `n_read` events; how it ended."""
        answers: Answers = {}
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                return self._compared(request, answers, expected, "streamed")
            if not line.startswith("data: "):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                if self.disturbed and event["error"]["type"] == "unavailable_error":
                    return "promised error in mid-stream"
                return self._failed(line[:300])
            if request.add(answers, event):
                self.found.tokens.append(time.monotonic())
            if n_read is not None:
                n_read -= 1
                if n_read < 0:
                    beginnings = {i: (expected[i][0][: len(text)], "") for i, (text, _) in answers.items()}
                    answers = {i: (text, "") for i, (text, _) in answers.items()}
                    return self._compared(request, answers, beginnings, "left in mid-answer")
        return self._failed("a stream without an end")

    async def _vanish(self, request: Request, n_read: int) -> str:
        """Ask, and reset the connection after some of the answer, at least none, at most what comes in 2 s."""
        parts = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            body = body_of(request, stream=request.can_stream and n_read > 2)
            head = f"POST {request.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
            for _ in range(n_read):
                try:
                    async with asyncio.timeout(0.1):
                        await reader.read(200)
                except TimeoutError:
                    continue
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        finally:
            writer.transport.abort()
        return "vanished"

    def _refused(self, reply: httpx.Response, text: str) -> str:
        if self.disturbed and reply.status_code == 503 and "retry-after" in reply.headers and "unavailable" in text:
            return _REFUSED
        return self._failed(f"{reply.status_code} {text[:300]}")

    def _compared(self, request: Request, answers: Answers, expected: Answers, how: str) -> str:
        if answers == expected:
            return how
        return self._failed(f"another answer: {how} {request}: {answers} instead of {expected}")

    def _failed(self, words: str) -> str:
        self.found.errors[words[:1000]] += 1
        return "failed"

    async def _probe(self, http: httpx.AsyncClient) -> None:
        """Ask for /health again and again."""
        while time.monotonic() < self.until:
            start = time.monotonic()
            try:
                reply = await http.get("/health")
                self.found.n_ill += reply.status_code == 503
                if reply.status_code not in ((200, 503) if self.disturbed else (200,)):
                    self._failed(f"/health: {reply.status_code}")
            except httpx.HTTPError as error:
                self._failed(f"/health: {type(error).__name__}")
            self.found.health_s.append(time.monotonic() - start)
            await asyncio.sleep(HEALTH_EVERY_S)

    async def _watch(self, http: httpx.AsyncClient) -> None:
        """Read the cluster's status once a second, as the page does."""
        try:
            async with http.stream("GET", "/v1/cluster", params={"stream": "true"}) as reply:
                async for _ in reply.aiter_lines():
                    if time.monotonic() > self.until:
                        return
        except httpx.HTTPError as error:
            self._failed(f"/v1/cluster: {type(error).__name__}")
            return
        self._failed("/v1/cluster: the stream has ended")

    async def _idle(self, http: httpx.AsyncClient) -> bool:
        """Whether the cluster has come to answer nobody."""
        until = time.monotonic() + IDLE_S
        while time.monotonic() < until:
            status: dict[str, Any] = (await http.get("/v1/cluster")).json()
            if not status["active"] and not status["queued"]:
                return True
            await asyncio.sleep(0.2)
        return False
