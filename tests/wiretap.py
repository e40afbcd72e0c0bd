"""What is on the wire between two ends of a TCP connection."""

from __future__ import annotations

import contextlib
import socket
import threading


class Wiretap:
    """A TCP relay to a port that keeps all that passes it."""

    def __init__(self, address: str) -> None:
        self._to = ("127.0.0.1", int(address.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent, self.received = bytearray(), bytearray()
        self.alter_next = False
        """Whether the last byte of what is sent next, and of that alone, becomes another one."""
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                there = socket.create_connection(self._to)
                self._open += [here, there]
                for source, to, kept in ((here, there, self.sent), (there, here, self.received)):
                    self._threads.append(threading.Thread(target=self._pass_on, args=(source, to, kept)))
                    self._threads[-1].start()

    def _pass_on(self, source: socket.socket, to: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                kept += data
                if kept is self.sent and self.alter_next:
                    self.alter_next, data = False, data[:-1] + bytes([data[-1] ^ 1])
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join()
