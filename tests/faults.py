"""Faults of a disk and of a machine, injected into a forked child that has imported everything.

`crashes` runs an action again and again, each time in a new child that ends without a word (as SIGKILL and a power cut
end it) one step later: before an open for writing, a write, an fsync, a rename or an unlink. A write ends after half of
its bytes. `failing` lets the n-th step of the same kinds fail with an error of the system instead.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CRASHED, FAILED = 77, 78
SEEN = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.symlink", "os.link")
MOST = 5000  # an action of more steps than this never ends

_layer: _Layer | None = None
_hooked = False


class _Layer:
    """Counts steps and calls ``strike`` at one of them."""

    def __init__(self, at: int, strike: Callable[[str], None]) -> None:
        self.at, self.strike, self.count, self.busy = at, strike, 0, False

    def step(self, what: str) -> bool:
        """Whether this is the step; a write strikes by itself, after its first half."""
        if self.busy:
            return False
        self.count += 1
        return self.count == self.at

    def pass_or_strike(self, what: str) -> None:
        if self.step(what):
            self.busy = True
            self.strike(what)


class _File:
    """A file opened for writing whose writes are steps."""

    def __init__(self, file: Any, layer: _Layer) -> None:
        self.__dict__.update(_file=file, _layer=layer)

    def write(self, content: Any) -> int:
        if self._layer.step("write"):
            self._layer.busy = True
            half = content[: len(content) // 2] if isinstance(content, str) else memoryview(content).cast("B")
            self._file.write(half if isinstance(content, str) else half[: len(half) // 2])
            self._file.flush()
            self._layer.strike("write")
        return self._file.write(content)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._file, name, value)

    def __enter__(self) -> _File:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._file.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._file)


@contextmanager
def _installed(layer: _Layer) -> Iterator[_Layer]:
    global _layer, _hooked
    plain_open, plain_sync = builtins.open, os.fsync

    def counted_open(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        opened = plain_open(file, mode, *rest, **named)
        writes = set(mode) & set("wax+") and not isinstance(file, int)
        return _File(opened, layer) if writes else opened

    def counted_sync(descriptor: Any) -> None:
        layer.pass_or_strike("fsync")  # what a crash of the process leaves does not depend on the call itself

    if not _hooked:
        sys.addaudithook(_audited)
        _hooked = True
    _layer = layer
    builtins.open, io.open, os.fsync = counted_open, counted_open, counted_sync  # type: ignore[assignment]
    try:
        yield layer
    finally:
        builtins.open, io.open, os.fsync = plain_open, plain_open, plain_sync  # type: ignore[assignment]
        _layer = None


def _audited(event: str, values: tuple[Any, ...]) -> None:
    layer = _layer
    if layer is None:
        return
    if event == "open":
        _, mode, flags = values
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR) and flags & (os.O_CREAT | os.O_TRUNC)
        if writes or (isinstance(mode, str) and set(mode) & set("wax")):
            layer.pass_or_strike("open")
    elif event in SEEN:
        layer.pass_or_strike(event)


def crashes(action: Callable[[], object], every: int = 1) -> Iterator[int]:
    """Run ``action`` in children that crash at step 1, 2, ...; yields each step after its child has ended.

    Ends when a child has come through. The caller checks and restores what is on the disk between two steps.

    Args:
        action: called in the child; must not need threads of the parent.
        every: distance between the steps that are tried.

    Raises:
        AssertionError: a child ended in another way: its traceback is on stderr.
    """
    for at in range(1, MOST, every):
        if _in_child(at, action) == 0:
            return
        yield at
    raise AssertionError(f"the action has more than {MOST} steps")


def _in_child(at: int, action: Callable[[], object]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(120)  # a child that hangs is a failure, not a hung suite
            with _installed(_Layer(at, lambda what: os._exit(CRASHED))):
                action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(1)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, CRASHED), f"step {at}: the child ended with {code}; its traceback is on stderr"
    return code


@contextmanager
def failing(at: int, number: int = errno.ENOSPC) -> Iterator[_Layer]:
    """Let step ``at`` fail with an error of the system, in this process; later steps work again."""

    def strike(what: str) -> None:
        layer.busy = False
        raise OSError(number, os.strerror(number))

    layer = _Layer(at, strike)
    with _installed(layer):
        yield layer


def steps(action: Callable[[], object]) -> int:
    """How many steps an action has."""
    with _installed(_Layer(0, lambda what: None)) as layer:
        action()
    return layer.count
