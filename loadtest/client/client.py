"""The client: sends at given times, and keeps every read with its time. Nothing else in the window.

Built for small bias. Requests are bytes before the start; connections are open before the start;
arrivals are timed by a kernel timer on the monotonic clock; a read is stamped by the kernel if
the socket allows it (`SO_TIMESTAMPNS`), so that a busy event loop does not make the server look
slow; the only parsing is the search for the response's end. Garbage collection is off from then on:
the process ends when it has written what it found. Everything else waits until the window is over
(`sse.py`).
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import MutableSequence
from select import EPOLLIN
from typing import TYPE_CHECKING, Any

from loadtest.client.clocks import compare_clocks
from loadtest.client.connect_errors import failure_of
from loadtest.client.connection import READ_BYTES, Connection, Request, monotonic_ns
from loadtest.client.headers import header_lines
from loadtest.client.host import cpu_s, host_times, steal_share, throttled_s
from loadtest.client.http1 import Framer
from loadtest.client.plan import Plan
from loadtest.client.pool import Pool
from loadtest.client.read_pacing import MAX_NAP_NS, MIN_NAP_NS, event_gap_ns, nap_ns
from loadtest.client.records import LEFT
from loadtest.client.timer import KernelTimer
from loadtest.routes.table import ROUTES

if TYPE_CHECKING:
    from loadtest.client.scribe import Scribe

TICK_NS = 20_000_000
"""Interval at which the loop measures its own lag and looks for timeouts."""
NEVER_NS = 2**62
PAUSE_AFTER_FAILURE_S = 0.1
"""A closed loop pauses a slot for this long after a failure."""


class Client(Pool):
    """Runs the part of a plan that falls to this process.

    Args:
        plan: What to send.
        key: The API key; only the headers contain it.
        counters: Three numbers that the parent watches: answered, failed, in flight.
    """

    def __init__(self, plan: Plan, key: str | None, counters: MutableSequence[int]) -> None:
        super().__init__(plan)
        self.counters = counters
        self.loop.set_exception_handler(self.broken)
        self.head = plan.head.encode()
        self.marks = ROUTES[plan.route].marks
        lines = header_lines(plan.headers, key)
        bodies = [body.encode() for body in plan.bodies]
        self.tails = [
            f"\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies
        ]
        self.leavers: deque[Request] = deque()
        """Requests whose client leaves at a time, in the order of their begin."""
        self.running: dict[int, Request] = {}
        """In the order of their begin, so that the first times out first."""
        self.ended: deque[Request] = deque()
        self.scribe: Scribe | None = None
        """Writes the records of a long run while it goes on."""
        self.first_ns: int | None = None
        """When the first request was due."""
        self.done = self.loop.create_future()
        self.failures_in_a_row = 0
        self.pauses = 0
        """Slots of a closed loop that wait after a failure."""
        self.num_begun = 0
        self.stop_ns: int | None = None
        self.num_reads = 0
        """Since the last tick."""
        self.num_ended = self.sum_of_requests_ns = 0
        self.nap_ns = MIN_NAP_NS
        self.most_nap_ns = MAX_NAP_NS
        self.next_tick_ns = 0
        self.loop.add_reader(self.epoll.fileno(), self.read_all)
        # Before the connections, which may take every file that the process is allowed.
        self.ticker = KernelTimer(self.loop, self.tick)
        begin = self.begin_slots if plan.arrivals_s is None else self.begin_schedule
        self.timer = KernelTimer(self.loop, begin)

    async def run(self, start_ns: int) -> list[Request]:
        """Send everything at its time from `start_ns` on; returns when all has ended."""
        gc.collect()
        gc.freeze()
        gc.disable()
        cpu_before_s, host_before = cpu_s(), host_times()
        if self.scribe is not None:
            self.scribe.start_ns = start_ns
        self.next_tick_ns = start_ns
        self.ticker.at(start_ns, every_ns=TICK_NS)
        if self.plan.arrivals_s is not None:
            offsets = self.plan.arrivals_s[self.plan.worker :: self.plan.num_workers]
            self.arrivals_ns = [start_ns + round(offset * 1e9) for offset in offsets]
        self.timer.at(start_ns)
        try:
            await self.done
        finally:
            host_after = host_times()
            self.check.cpu_s = cpu_s() - cpu_before_s
            self.check.wall_s = (monotonic_ns() - start_ns) / 1e9
            self.check.steal_share = steal_share(host_before, host_after)
            self.check.throttled_s = throttled_s(host_before, host_after)
            self.timer.close()
            self.ticker.close()
            self.stopping = True
            for task in self.tasks:
                task.cancel()
            for connection in list(self.connections):
                connection.close()
            self.loop.remove_reader(self.epoll.fileno())
            self.epoll.close()
        return sorted([*self.ended, *self.running.values()], key=lambda one: one.intended_ns)

    def broken(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """End with the error of a callback, rather than wait for what it left undone."""
        if not self.done.done():
            error = context.get("exception")
            self.done.set_exception(error or RuntimeError(context["message"]))

    def stop(self) -> None:
        """End now: what is in flight stays unfinished."""
        self.stopping = True
        if not self.done.done():
            self.done.set_result(None)

    def begin_schedule(self) -> None:
        """Send every arrival that is due; then sleep until the next. Nothing is skipped."""
        arrivals = self.arrivals_ns
        while self.cursor < len(arrivals):
            due_ns = arrivals[self.cursor]
            if due_ns > monotonic_ns():
                self.timer.at(due_ns)
                return
            index = self.plan.worker + self.cursor * self.plan.num_workers
            self.cursor += 1
            self.arrive(index, due_ns)
        self.settle()

    def arrive(self, number: int, due_ns: int) -> None:
        """Begin what arrives: a request, or a session."""
        self.begin(number, due_ns)

    def begin_slots(self) -> None:
        for _ in self.plan.streams:
            self.begin_next()
        self.settle()

    def begin_next(self) -> None:
        """Begin the next request of a closed loop: a slot is free."""
        if self.stopping or not self.has_next():
            return
        index = self.plan.number_of(self.num_begun)
        self.num_begun += 1
        now_ns = monotonic_ns()
        is_measured = index >= self.plan.num_warmup_requests
        if is_measured and self.stop_ns is None and self.plan.duration_s is not None:
            self.stop_ns = now_ns + round(self.plan.duration_s * 1e9)
        self.arrive(index, now_ns)

    def has_next(self) -> bool:
        if self.plan.arrivals_s is not None:
            return self.cursor < len(self.arrivals_ns)
        if not self.plan.streams:
            return False
        if self.plan.num_requests is not None:
            return self.plan.number_of(self.num_begun) < self.plan.num_requests
        return self.stop_ns is None or monotonic_ns() < self.stop_ns

    def begin(self, index: int, intended_ns: int) -> None:
        request = Request(index, intended_ns, self.plan.most_answer_bytes)
        if self.plan.leaves(index):
            request.events_left = self.plan.leave_after_tokens
            if request.events_left is None:
                self.leavers.append(request)
        self.first_ns = intended_ns if self.first_ns is None else self.first_ns
        self.running[index] = request
        if self.pool:
            self.send(request, self.pool.pop())
        else:
            self.spawn(self.connect_and_send(request))

    def send(self, request: Request, connection: Connection) -> None:
        connection.request = request
        connection.framer = Framer()
        request.connection = connection
        connection.send(b"%b%d%b" % (self.head, request.index, self.tail_of(request)))

    def tail_of(self, request: Request) -> bytes:
        """Return a request from after its id on."""
        body_of = self.plan.body_of
        return self.tails[body_of[request.index % len(body_of)]]

    async def connect_and_send(self, request: Request) -> None:
        self.check.num_connects_in_window += 1
        begun_ns = monotonic_ns()
        try:
            connection = await self.connect()
        except OSError as error:  # TimeoutError is one
            self.fail(request, *failure_of(error))
        else:
            if request.end_ns is None:
                if request.sent_ns is None:
                    request.connect_ns = monotonic_ns() - begun_ns
                self.send(request, connection)
            else:
                self.pool.append(connection)

    def read_all(self) -> None:
        """Read what has come, then let a little more arrive before the next look: fewer wake-ups,
        and the kernel keeps the time."""
        readers = self.readers
        ready = self.epoll.poll(0)
        self.num_reads += len(ready)
        for fd, flags in ready:
            # One read may have closed the next one's connection. The epoll reports only what is
            # new, so an end that came with the last bytes is read at once.
            while (reader := readers.get(fd)) is not None:
                num_bytes = reader()
                if num_bytes < READ_BYTES and (flags == EPOLLIN or not num_bytes):
                    break
        if self.kernel_clock:
            now_ns = monotonic_ns()
            is_connecting = len(self.tasks) > self.num_spares_opening
            if is_connecting or self.next_due_ns() - now_ns < self.nap_ns:
                return  # a request is due before, or waits for its connection
            left_ns = min(self.nap_ns, self.next_tick_ns - now_ns)  # a nap does not count as lag
            if left_ns <= 0:
                return
            if self.scribe is not None and self.scribe.is_begun:
                self.scribe.work(now_ns + left_ns)
                left_ns = now_ns + left_ns - monotonic_ns()
            time.sleep(max(left_ns, 0) / 1e9)

    def next_due_ns(self) -> int:
        """Return when the next request is due; far away without one."""
        return self.arrivals_ns[self.cursor] if self.cursor < len(self.arrivals_ns) else NEVER_NS

    def finish(self, connection: Connection, request: Request, now_ns: int) -> None:
        """End a request whose response is whole; only later is it read whether it is good."""
        self.release(connection, now_ns)
        self.count_end(request, connection.framer.status, now_ns)

    def count_end(self, request: Request, status: int, now_ns: int) -> None:
        if status == 200:
            self.failures_in_a_row = 0
            self.counters[0] += 1
        else:
            self.failures_in_a_row += 1
            self.counters[1] += 1
        self.end(request, now_ns)
        self.num_ended += 1
        self.sum_of_requests_ns += now_ns - request.intended_ns
        self.follow(request, pause=status != 200)

    def end(self, request: Request, now_ns: int) -> None:
        """Put a request among the ended requests."""
        request.end_ns = now_ns
        self.running.pop(request.index, None)
        self.ended.append(request)
        if self.scribe is not None:
            self.scribe.num_reads += len(request.reads)

    def lost(self, connection: Connection, request: Request, reason: str, message: str) -> None:
        """Send a request again, or count it as failed: the connection ended under it."""
        now_ns = monotonic_ns()
        # Without a time the write itself failed.
        begun_ns = now_ns if request.sent_ns is None else request.sent_ns
        first = not request.reads and not request.resent and not self.stopping
        if first and connection.was_closed_unread(begun_ns, now_ns):
            # RFC 9112, 9.3.1: the server closed an idle connection while we wrote to it.
            self.drop(connection)
            request.resent, request.sent_ns = True, begun_ns
            self.check.num_resent += 1
            # Some servers close the connection after each answer without saying so.
            if not connection.idled_long(begun_ns):
                self.reuses = False
                self.check.num_closed_at_once += 1
            self.spawn(self.connect_and_send(request))
            return
        request.closed = True
        if reason == "closed":
            if connection.framer.close():
                self.drop(connection)
                self.count_end(request, connection.framer.status, monotonic_ns())
                return
            reason = "truncated_stream" if connection.framer.begun else "connection_reset"
        self.fail(request, reason, message)

    def fail(self, request: Request, reason: str, message: str) -> None:
        if request.end_ns is not None:
            return
        self.end(request, monotonic_ns())
        request.error, request.message = reason, message
        self.counters[1] += 1
        self.failures_in_a_row += 1
        if request.connection is not None:
            self.drop(request.connection)
        self.follow(request, pause=True)

    def counts_out(self, request: Request, data: bytes) -> bool:
        assert request.events_left is not None  # noqa: S101 (the caller checks)
        mark, *without_token = self.marks
        request.events_left -= data.count(mark) - sum(map(data.count, without_token))
        if request.events_left > 0:
            return False
        self.leave(request)
        return True

    def leave(self, request: Request) -> None:
        """Let the client leave: the connection ends, and the answer with it."""
        if request.end_ns is not None:
            return
        self.end(request, monotonic_ns())
        request.error = LEFT
        self.counters[0] += 1
        if request.connection is not None:
            self.drop(request.connection)
        self.follow(request, pause=False)

    def follow(self, _request: Request, *, pause: bool) -> None:
        """Begin the next request of a closed loop after one has ended."""
        self.free_slot(pause=pause)

    def free_slot(self, *, pause: bool) -> None:
        if self.plan.arrivals_s is None and not self.stopping:
            if self.failures_in_a_row >= self.abort_after:
                self.stop()
                return
            if pause and self.has_next():
                self.pauses += 1
                self.loop.call_later(PAUSE_AFTER_FAILURE_S, self.after_pause)
                return
            self.begin_next()
        self.settle()

    def after_pause(self) -> None:
        self.pauses -= 1
        self.begin_next()
        self.settle()

    @property
    def abort_after(self) -> int:
        """A closed loop that only fails ends early; what it did not send stays unfinished."""
        return max(30, 3 * (self.plan.concurrency or 1))

    def settle(self) -> None:
        is_busy = self.running or self.pauses or self.is_waiting() or self.has_next()
        if not is_busy and not self.done.done():
            self.done.set_result(None)

    def is_waiting(self) -> bool:
        """Return whether a request is due later that no arrival begins."""
        return False

    def tick(self) -> None:
        now_ns = monotonic_ns()
        # Ticks are absolute, and every missed tick counts: a loop that stops for 50 ms was late two
        # or three times, not once.
        while self.next_tick_ns <= now_ns:
            self.check.loop_lags_ns.append(now_ns - self.next_tick_ns)
            self.next_tick_ns += TICK_NS
        gap_ns = event_gap_ns(TICK_NS, len(self.running), self.num_reads)
        mean_ns = None
        if self.plan.arrivals_s is None and self.first_ns is not None:
            # Before the first has ended: at least so long.
            mean_ns = now_ns - self.first_ns
            if self.num_ended:
                mean_ns = self.sum_of_requests_ns // self.num_ended
        self.nap_ns = min(nap_ns(gap_ns, mean_ns), self.most_nap_ns)
        self.num_reads = 0
        self.counters[2] = len(self.running)
        self.keep_spares()
        if self.plan.leave_after_s is not None:
            leave_ns = now_ns - round(self.plan.leave_after_s * 1e9)
            while self.leavers and self.leavers[0].intended_ns <= leave_ns:
                self.leave(self.leavers.popleft())
        limit_ns = now_ns - round(self.plan.timeout_s * 1e9)
        while self.running:
            request = next(iter(self.running.values()))
            if request.intended_ns > limit_ns:
                break
            silent_ns = now_ns - request.reads[-1][0] if request.reads else 0
            reason = "stalled" if 2 * silent_ns > self.plan.timeout_s * 1e9 else "timeout"
            self.fail(request, reason, f"not ended after {self.plan.timeout_s:g} s")
        compare_clocks(self.clock_offsets, self.compared_ns)
        self.compared_ns = now_ns
        if self.scribe is not None and not self.scribe.tick(now_ns, self.next_due_ns(), self.check):
            self.stop()  # the disk is full
