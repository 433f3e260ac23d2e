"""The one thread that touches MLX: commands come in by an inbox, outputs leave by outboxes."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from mlx_server.engine import device
from mlx_server.engine.engines import Engines
from mlx_server.engine.trace import Trace
from mlx_server.errors import ServerError, Unavailable
from mlx_server.exchange import EngineRequest, StepOutput
from mlx_server.services import RowInfo

log = logging.getLogger(__name__)

Outbox = queue.SimpleQueue[StepOutput]

IDLE = 10.0
"""Seconds without work after which memory that is only kept for new arrays goes back."""


@dataclass(frozen=True, slots=True)
class Add:
    """Queue a request with an engine; its outputs go to the outbox."""

    engine: str
    request: EngineRequest
    outbox: Outbox


@dataclass(frozen=True, slots=True)
class Abort:
    """Drop a request, or its sequence `index`."""

    request_id: str
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Control:
    """Run a function on the engine thread, between two steps.

    Args:
        idle: The engine that must have nothing left to do before,
        unless: or else this be true.
    """

    function: Callable[[Engines], Any]
    future: Future[Any]
    idle: str | None = None
    unless: Callable[[], bool] = lambda: False

    def ready(self, engines: Engines) -> bool:
        """Whether it can be run now, or has to wait for an engine to have nothing to do."""
        engine = engines.get(self.idle or "")
        return engine is None or not engine.busy or self.unless()

    def run(self, engines: Engines) -> None:
        """Run it; its result, or what it raised, goes to the future."""
        try:
            self.future.set_result(self.function(engines))
        except BaseException as error:
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class Stop:
    """End the thread, and every request with an error."""

    pass


Command = Add | Abort | Control | Stop


class Worker:
    """Steps every loaded engine; MLX arrays are made on its thread only.

    Args:
        max_waiting: Sequences that may wait for a place, over all engines.
    """

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._engines = Engines()
        self._outboxes: dict[str, tuple[str, Outbox]] = {}
        # They stay when their engines go.
        self._traces: dict[str, Trace] = {}
        # Sequences without a place: known to the engines, and on their way to them.
        self._num_waiting = 0
        self._num_in_inbox = 0
        self._num_free = 0
        self._lock = threading.Lock()
        self._deferred: list[Control] = []
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the engine thread; commands that came before are not lost."""
        self._thread.start()

    @property
    def stopped(self) -> bool:
        """Whether no request is answered any more."""
        return self._stopped

    # ------------------------------------------------------------ from any thread

    def trace(self) -> list[dict[str, Any]]:
        """What happened lately to the requests of every model, as Chrome trace events: a process
        for each model; also when the worker has stopped. Where tracing is off there are none."""
        traces = enumerate(list(self._traces.items()), 1)
        return [event for i, (name, trace) in traces for event in trace.export(i, name)]

    def stats(self) -> dict[str, float]:
        """What the engines count, summed over them, and what the device's memory holds."""
        return {**self._engines.stats(), **device.memory()}

    def rows(self) -> list[RowInfo]:
        """The sequences that run just now, without asking the engine thread for them."""
        return self._engines.rows()

    def submit(self, engine: str, requests: Sequence[EngineRequest], outbox: Outbox) -> None:
        """Queue requests that belong together, all or none; their outputs arrive in the outbox.

        However many they are, they are taken where nobody waits before them.

        Raises:
            Unavailable: The queue is full, or the server is stopping.
        """
        with self._lock:
            waiting = self._num_waiting + self._num_in_inbox
            wanted = sum(request.n for request in requests)
            if waiting and waiting + wanted > self.max_waiting + self._num_free:
                raise Unavailable(
                    f"{waiting} sequences are waiting already; try again soon.", retry_after=1
                )
            self._num_in_inbox += wanted
            self._put(*(Add(engine, request, outbox) for request in requests))

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request, or its sequence `index`, from any thread; at the start of the next step.
        Unknown ids are ignored, and its outbox gets nothing more."""
        self._inbox.put(Abort(request_id, index))

    def call(
        self,
        function: Callable[[Engines], Any],
        *,
        idle: str | None = None,
        unless: Callable[[], bool] = lambda: False,
    ) -> Any:
        """Run `function(engines)` on the engine thread and wait for its result.

        Args:
            idle: An engine whose requests all end first,
            unless: this becomes true before.

        Raises:
            Unavailable: The server is stopping. Whatever `function` raises.
        """
        future: Future[Any] = Future()
        with self._lock:
            self._put(Control(function, future, idle, unless))
        return future.result()

    def _put(self, *commands: Command) -> None:
        """With the lock held, so that nothing is put behind the last look into the inbox."""
        if self._stopped:
            raise Unavailable("The server is stopping.", retry_after=5)
        for command in commands:
            self._inbox.put(command)

    def stop(self, timeout: float = 10.0) -> bool:
        """End every request with an error and the thread with it; False if it takes longer."""
        self._inbox.put(Stop())
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # ------------------------------------------------------------ on the engine thread

    def _run(self) -> None:
        try:
            device.prepare()
            while not self._stopped:
                self._turn()
        except Exception:
            log.critical("the engine thread failed; the server answers no more", exc_info=True)
        finally:
            self._turn_away()
            self._engines.clear()
            device.release()

    def _turn(self) -> None:
        """Obey what has come, step every engine that has work, run what waited for one."""
        self._obey(self._commands())
        for name in list(self._engines):
            self._step(name)
        for control in [c for c in self._deferred if c.ready(self._engines)]:
            self._deferred.remove(control)
            control.run(self._engines)
        with self._lock:
            self._num_waiting = sum(e.num_waiting for e in self._engines.values())
            self._num_free = sum(e.num_free for e in self._engines.values())

    def _turn_away(self) -> None:
        """Leave nobody waiting for an answer that will not come."""
        with self._lock:
            self._stopped = True
        stopping = Unavailable("The server is stopping.", retry_after=5)
        for control in self._deferred:
            control.future.set_exception(stopping)
        outboxes = [outbox for _, outbox in self._outboxes.values()]
        while not self._inbox.empty():
            command = self._inbox.get()
            if isinstance(command, Add):
                outboxes.append(command.outbox)
            elif isinstance(command, Control):
                command.future.set_exception(stopping)
        for outbox in outboxes:
            outbox.put(StepOutput(error=stopping))

    def _commands(self) -> Iterable[Command]:
        """All commands that have come; waits for one while there is nothing to step."""
        if not any(engine.busy for engine in self._engines.values()):
            try:
                yield self._inbox.get(timeout=IDLE)
            except queue.Empty:
                device.give_back()
                yield self._inbox.get()
        while True:
            try:
                yield self._inbox.get_nowait()
            except queue.Empty:
                return

    def _obey(self, commands: Iterable[Command]) -> None:
        for command in commands:
            match command:
                case Add(name, request, outbox):
                    self._add(name, request, outbox)
                case Abort(request_id, index):
                    self._abort(request_id, index)
                case Control():
                    if command.ready(self._engines):
                        command.run(self._engines)
                    else:
                        self._deferred.append(command)
                case Stop():
                    self._stopped = True

    def _add(self, name: str, request: EngineRequest, outbox: Outbox) -> None:
        with self._lock:
            self._num_in_inbox -= request.n
            self._num_waiting += request.n
        try:
            if name not in self._engines:
                raise Unavailable("The model was unloaded; try again.", retry_after=1)
            engine = self._engines[name]
            if engine.trace is not None:
                self._traces[name] = engine.trace
            engine.add(request)
            self._outboxes[request.id] = (name, outbox)
        except ServerError as error:
            outbox.put(StepOutput(error=error))
        except Exception as error:
            log.exception("request %s could not be queued", request.id)
            outbox.put(StepOutput(error=ServerError(f"The request could not be queued: {error}")))

    def _abort(self, request_id: str, index: int | None) -> None:
        entry = self._outboxes.get(request_id)
        if entry is None:
            return
        engine = self._engines.get(entry[0])
        if engine is not None:
            engine.abort(request_id, index)
        if engine is None or not engine.holds(request_id):
            del self._outboxes[request_id]

    def _step(self, name: str) -> None:
        # Local to this call: an engine that is unloaded later must not stay alive here.
        engine = self._engines[name]
        if not engine.busy:
            return
        try:
            outputs = engine.step()
        except Exception as error:
            # The engine recovers from failures of the model itself; this is a fault of ours.
            log.exception("a step of %s failed", name)
            outputs = {
                request_id: StepOutput(error=ServerError(f"The server failed: {error}"))
                for request_id in engine.drop_all()
            }
        for request_id, output in outputs.items():
            entry = self._outboxes.get(request_id)
            if entry is None:
                continue
            # One hand-over per request and step, whatever it holds.
            entry[1].put(output)
            if not engine.holds(request_id):
                del self._outboxes[request_id]
        engine.launch()
