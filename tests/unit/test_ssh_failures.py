"""What ssh's own lines mean: the one that tells the most, and what to do."""

from __future__ import annotations

import re

import pytest

from dllama_zmq.launch.ssh import failure

TO = "pi@192.168.1.12"

CHANGED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Offending ED25519 key in /home/me/.ssh/known_hosts:3
  remove with:
  ssh-keygen -f "/home/me/.ssh/known_hosts" -R "192.168.1.12"
Host key for 192.168.1.12 has changed and you have requested strict checking.
Host key verification failed.
"""


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (CHANGED, 'HAS CHANGED!: the computer .*, run `ssh-keygen -f "/home/me/.ssh/known_hosts" -R "192.168.1.12"`'),
        ("@ REMOTE HOST IDENTIFICATION HAS CHANGED! @\n", "run `ssh-keygen -R 192.168.1.12`, then `ssh pi@192"),
        ("Host key verification failed.\r\n", "run `ssh pi@192.168.1.12` once by hand"),
        (
            "me@jump: Permission denied (publickey).\nkex_exchange_identification: Connection closed by remote host\n"
            "Connection closed by UNKNOWN port 65535\n",
            r"me@jump: Permission denied \(publickey\)\.: that computer knows no key of yours",
        ),
        ("Received disconnect from ::1 port 22:2: Too many authentication failures\n", "no key of yours"),
        ("ssh: connect to host 192.168.1.12 port 22: Connection refused\n", "no ssh server listens there"),
        ("ssh: connect to host 192.168.1.12 port 22: No route to host\n", "are both in one network"),
        ("ssh: connect to host 192.168.1.12 port 22: Connection timed out\n", "does its firewall let ssh through"),
        ("Connection timed out during banner exchange\n", "does its firewall let ssh through"),
        ("Timeout, server 192.168.1.12 not responding.\r\n", "Timeout, server 192.168.1.12 not responding.: is that"),
        ("client_loop: send disconnect: Broken pipe\r\n", "the connection was cut"),
        ("Bad owner or permissions on /home/me/.ssh/config\r\n", "Bad owner .*: try `ssh pi@192.168.1.12` by hand"),
        ("\n \n", "it ended without a message"),
    ],
)
def test_the_most_telling_line_comes_with_what_to_do(said: str, expected: str) -> None:
    sentence = failure(TO, said)
    assert sentence.startswith(f"ssh {TO}: ")
    assert "\n" not in sentence
    assert "@@" not in sentence
    assert re.search(expected, sentence), sentence
