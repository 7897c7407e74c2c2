"""A kernel timer (timerfd) on the monotonic clock, for an event loop.

uvloop's own timers have whole milliseconds, which would add up to 1 ms of send lag. It works only
on Linux. Python has `os.timerfd_create` from 3.13 on.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from collections.abc import Callable

TFD_NONBLOCK = 0o4000
TFD_CLOEXEC = 0o2000000
TFD_TIMER_ABSTIME = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


_libc = ctypes.CDLL(None, use_errno=True)


class KernelTimer:
    """Calls back when an absolute monotonic time has come, and from then on as often as asked."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop, self._callback = loop, callback
        self._spec = _Itimerspec()
        self._fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        loop.add_reader(self._fd, self._fire)

    def at(self, monotonic_ns: int, *, every_ns: int = 0) -> None:
        """Call back at `monotonic_ns`, or at once if that has passed.

        Args:
            monotonic_ns: When.
            every_ns: Above zero: again after each such interval. One call may stand for several.
        """
        value, interval = self._spec.value, self._spec.interval
        value.seconds, value.nanoseconds = divmod(max(monotonic_ns, 1), 1_000_000_000)
        interval.seconds, interval.nanoseconds = divmod(every_ns, 1_000_000_000)
        _libc.timerfd_settime(self._fd, TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None)

    def _fire(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
        self._callback()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
