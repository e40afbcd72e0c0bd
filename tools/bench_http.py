"""tokens/s of streams over HTTP beside those of clients of the bus, in turn: what the API server costs.

    python tools/bench_http.py -m demo --nodes 1,2 --clients 1,4

A round is as many answers at once as there are clients, over the bus, and then the same over HTTP; each client is a
process of its own, as `generate` and a program that uses the API are. tokens/s are of all of them together, from the
first token of all to the last. At last they come over HTTP again, while /health is asked 20 times a second.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from dllama_zmq.bus.client_messages import TokenText
from dllama_zmq.cli.chosen import client_of
from dllama_zmq.cli.flags import There

_TOOL = Path(__file__).resolve()
_LIMIT_S = 300.0
_WARM_UP = 8
_HEALTH_S = 0.05


def command(*words: str) -> str:
    """Run `dllama-zmq` in the folder of this process; returns its stdout, and ends the tool where it fails."""
    line = [sys.executable, "-m", "dllama_zmq", *words]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT_S)
    if done.returncode:
        sys.exit(f"dllama-zmq {words[0]} failed with exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def over_bus(n_tokens: int) -> Iterator[float]:
    """When each token came."""
    with client_of(There(), None) as client:
        for answer in client.generate("Once upon a time", n_tokens, ignore_eos=True):
            if isinstance(answer, TokenText):
                yield time.time()


def over_http(url: str, n_tokens: int) -> Iterator[float]:
    """When each chunk with text came, which has one token but for those that wait for the rest of a character."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_LIMIT_S)
    body = {"prompt": "Once upon a time", "max_tokens": n_tokens, "ignore_eos": True, "stream": True, "temperature": 0}
    connection.request("POST", "/v1/completions", json.dumps(body))
    for line in connection.getresponse():
        if line.startswith(b"data: {") and b'"finish_reason":null' in line:
            yield time.time()
    connection.close()


def together(n_clients: int, n_tokens: int, url: str, asks: bool = False) -> tuple[float, list[float]]:
    """tokens/s of all clients, each a process; and what /health took meanwhile, where it is asked."""
    words = [sys.executable, str(_TOOL), "--one", str(n_tokens), *(["--url", url] if url else [])]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(n_clients)]
    seconds: list[float] = []
    while asks and any(one.poll() is None for one in running):
        begun = time.perf_counter()
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_LIMIT_S)
        connection.request("GET", "/health")
        connection.getresponse().read()
        connection.close()
        seconds.append(time.perf_counter() - begun)
        time.sleep(_HEALTH_S)
    spans = [json.loads(one.communicate(timeout=_LIMIT_S)[0]) for one in running]
    begun, ended = min(span[0] for span in spans), max(span[1] for span in spans)
    return n_clients * (n_tokens - 1) / (ended - begun), seconds


def compare(args: argparse.Namespace, nodes: int) -> None:
    """Print a line for each number of clients."""
    files = ["-m", args.model, *(["--tokenizer", args.tokenizer] if args.tokenizer else [])]
    command("up", *files, "--nodes", str(nodes), "-t", str(args.threads))
    try:
        url = json.loads(command("status", "--json"))["api"]
        for n_clients in map(int, args.clients.split(",")):
            bus, http_ = [], []
            together(n_clients, _WARM_UP, url)
            for _ in range(args.rounds):
                bus.append(together(n_clients, args.tokens, "")[0])
                http_.append(together(n_clients, args.tokens, url)[0])
            health = together(n_clients, args.rounds * args.tokens, url, asks=True)[1]
            of_bus, of_http = statistics.median(bus), statistics.median(http_)
            p99 = sorted(health)[int(len(health) * 0.99)] * 1000
            each = ", ".join(f"{b:.0f}/{h:.0f}" for b, h in zip(bus, http_, strict=True))
            print(
                f"{nodes} nodes, {n_clients} clients: bus {of_bus:.1f}, HTTP {of_http:.1f} tokens/s, "
                f"{of_http / of_bus:.3f} ({each}); /health p99 {p99:.1f} ms of {len(health)}"
            )
    finally:
        command("down")


def main() -> None:
    """Run the tool, or be one of its clients."""
    parser = argparse.ArgumentParser(description="What the API server costs.")
    parser.add_argument("-m", "--model", default="demo")
    parser.add_argument("--tokenizer", help="the model's, where it does not bring one")
    parser.add_argument("-n", "--tokens", type=int, default=200)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--nodes", default="1")
    parser.add_argument("--clients", default="1,4")
    parser.add_argument("-t", "--threads", default="1")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        times = list(over_http(args.url, args.one) if args.url else over_bus(args.one))
        print(json.dumps([times[0], times[-1]]))
        return
    for name in ("model", "tokenizer"):
        if (given := getattr(args, name)) and Path(given).exists():
            setattr(args, name, str(Path(given).resolve()))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DLLAMA_ZMQ_HOME"] = folder
        os.chdir(folder)
        for nodes in map(int, args.nodes.split(",")):
            compare(args, nodes)


if __name__ == "__main__":
    main()
