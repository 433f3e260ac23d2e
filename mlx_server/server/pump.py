"""Pump: one thread that sends the events of all streams while they flow.

With a thread for each stream every token wakes one, and sixty of them quarrel about
the interpreter lock among themselves and with the engine's thread. So a handler hands
its stream over, sleeps, and gets it back when it has ended, or would keep the others
waiting:

    handler ── carry() ──> pump: news ─> next events ─> sent without waiting ─┐
       ^                     ^────────── Lull: nothing more has come ─────────┤
       └─────────── the end, a full socket, a client that is gone ────────────┘
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator

from mlx_server.api.base import Listenable
from mlx_server.deltas import Lull
from mlx_server.server import wire
from mlx_server.server.watcher import Presence
from mlx_server.server.wire import Disconnected

_LEAST_WAIT = 0.05  # seconds for what is due already and on its way through the pump


class Flow:
    """One stream on its way to its client.

    Args:
        pieces: What is sent, each at once and by itself.
        source: Where the pieces come from.

    Attributes:
        over: Whether everything is sent.
        unsent: The rest of a piece that the socket had no room for.
        bytes_sent: What the pump has sent.
    """

    def __init__(
        self,
        sock: socket.socket,
        presence: Presence,
        pieces: Iterator[bytes | Lull],
        source: Listenable,
    ) -> None:
        self.over = False
        self.unsent: bytes | memoryview = b""
        self.bytes_sent = 0
        self.source = source
        self.error: BaseException | None = None
        # Set by the handler, cleared by the pump: the iterator has one owner at any time.
        self.carried = False
        self.returned = threading.Semaphore(0)
        self._sock = sock
        self._presence = presence
        self._pieces = pieces

    def advance(self) -> bool:
        """Send what there is without waiting. Whether more of it may come by itself."""
        try:
            for piece in self._pieces:
                if isinstance(piece, Lull):
                    return True
                if self._presence.lost:
                    raise Disconnected
                sent = wire.send_now(self._sock, piece)
                self.bytes_sent += sent
                if sent < len(piece):
                    self.unsent = memoryview(piece)[sent:]
                    return False
            self.over = True
        except BaseException as error:
            self.error = error
        return False


class Pump:
    def __init__(self) -> None:
        self._news: queue.SimpleQueue[Flow | None] = queue.SimpleQueue()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="streams", daemon=True)
        self._thread.start()

    def carry(self, flow: Flow) -> None:
        """Send the stream until it is `over` or has something `unsent` to wait for.

        Raises:
            Disconnected: The client is gone, or the server stops. Whatever the stream raises.
        """
        flow.unsent = b""
        flow.carried = True
        flow.source.listen(lambda: self._news.put(flow))
        self._news.put(flow)
        while not flow.returned.acquire(timeout=max(flow.source.patience(), _LEAST_WAIT)):
            if self._stopped:
                raise Disconnected
            self._news.put(flow)  # it has something to say though nothing came
        if flow.error is not None:
            raise flow.error

    def stop(self) -> None:
        """What has come is still sent."""
        self._stopped = True
        self._news.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (flow := self._news.get()) is not None:
            # News of a flow that went back already is the handler's.
            if flow.carried and not flow.advance():
                flow.carried = False
                flow.returned.release()
