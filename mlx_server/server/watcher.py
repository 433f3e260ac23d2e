"""DisconnectWatcher: one thread that notices when the client of a running request is gone.

A handler thread that waits for the engine reads nothing from its socket, so it
would learn of a closed connection only when it writes, and a long prefill would
run to its end for nobody.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)

# Linux tells of a peer's end-of-file even behind unread bytes; elsewhere POLLHUP must do.
_HANGUP = select.POLLHUP | select.POLLERR | select.POLLNVAL | getattr(select, "POLLRDHUP", 0)
_READABLE = select.POLLIN | _HANGUP


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """One watched socket, as `unwatch` takes it."""

    sock: socket.socket
    fd: int
    callback: Callable[[], None]


class DisconnectWatcher:
    """Watches sockets for end-of-file. While one is watched nobody else may read from it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, Watch] = {}
        self._stopped = False
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._poller = select.poll()
        self._poller.register(self._wake_out, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="disconnects", daemon=True)
        self._thread.start()

    def watch(self, sock: socket.socket, callback: Callable[[], None]) -> Watch:
        """Call `callback` once, from the watcher's thread, when the peer has closed `sock`."""
        watch = Watch(sock, sock.fileno(), callback)
        if watch.fd < 0:
            callback()
            return watch
        with self._lock:
            if not self._stopped:
                self._watched[watch.fd] = watch
                self._poller.register(watch.fd, _READABLE)
        self._wake()
        return watch

    def unwatch(self, watch: Watch) -> None:
        """Once this returns the watcher does not touch the socket any more."""
        with self._lock:
            self._forget(watch)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            self._watched.clear()
        self._wake()
        self._thread.join()
        self._wake_in.close()
        self._wake_out.close()

    def _forget(self, watch: Watch) -> bool:
        # The number may belong to another socket by now, so the entry must be this one.
        if self._watched.get(watch.fd) is not watch:
            return False
        del self._watched[watch.fd]
        self._poller.unregister(watch.fd)
        return True

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: one is under way; closed: nobody to wake
            self._wake_in.send(b"\0")

    def _run(self) -> None:
        while not self._stopped:
            for fd, _ in self._poller.poll():
                if fd == self._wake_out.fileno():
                    self._wake_out.recv(4096)
                else:
                    self._check(fd)

    def _check(self, fd: int) -> None:
        with self._lock:
            watch = self._watched.get(fd)
            if watch is None:
                return
            if not _is_gone(watch):
                # A pipelined request waits: without this, poll() would return at once for ever.
                self._poller.modify(fd, _HANGUP)
                return
            self._forget(watch)
        try:
            watch.callback()
        except Exception:
            log.exception("a disconnect callback failed")


def _is_gone(watch: Watch) -> bool:
    # Asked anew: what poll() said may be about a socket that had this number before, and
    # recv() on the wrong one would wait for its timeout.
    now = select.poll()
    now.register(watch.fd, _READABLE)
    events = dict(now.poll(0)).get(watch.fd, 0)
    if events & _HANGUP:
        return True
    if not events:
        return False
    try:
        # The plain socket's recv(): with TLS these bytes are for the thread that decrypts.
        return socket.socket.recv(watch.sock, 1, socket.MSG_PEEK) == b""
    except (BlockingIOError, TimeoutError):
        return False
    except OSError:
        return True


class Presence:
    """Whether the client of one request is still there, and whom to tell when it is not."""

    def __init__(self, watcher: DisconnectWatcher, sock: socket.socket) -> None:
        self._watcher = watcher
        self._sock = sock
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._watch: Watch | None = None
        self.lost = False

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the client is gone; at once if it is."""
        with self._lock:
            self._callbacks.append(callback)
        if self.lost:
            self.lose()
        elif self._watch is None:
            self._watch = self._watcher.watch(self._sock, self.lose)

    def lose(self) -> None:
        """The client is gone. From any thread, any number of times."""
        with self._lock:
            self.lost = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("a disconnect callback failed")

    def close(self) -> None:
        """The request is over; the socket may be read again."""
        if self._watch is not None:
            self._watcher.unwatch(self._watch)
