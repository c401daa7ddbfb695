"""The one trio loop of a process, on a daemon thread, and how other threads have it do things.

    the caller's thread                      the loop's thread
    call(work)  --run_sync_soon-->           task: with scope: await work()
      waits for the call's Flag   <--set--   value or error kept in the call
      Ctrl-C: scope.cancel(), waits, raises

Why a daemon and `atexit`: the interpreter first joins the threads that are no daemons, which may
well be using machines, then calls `atexit`, and only then stops daemons where they are. So
`stop` ends the machines when everybody who could use them has gone, and can wait for it.

A forked child has this thread's memory but not the thread. Its copy is put aside: calls on it are
refused, ends are ignored, and nothing of it is ever collected, since the frames of threads that did
not come along keep it. So no `finally` of the parent's tasks runs twice. The fork itself happens
while the loop stands between two tasks.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

from microvm.sync._calls import Call, Held
from microvm.sync._flag import Flag

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    import trio

T = TypeVar("T")

log = logging.getLogger("microvm.sync")

STOP_WITHIN_S: Final = 10.0
"""How long the interpreter's exit waits for machines to end. It takes milliseconds; only a plugin
that hangs takes longer, and backends end their machines with the process in any case."""
FORK_WITHIN_S: Final = 1.0
"""How long a fork waits for the loop to stand still, and the loop for the fork."""
LOOK_UP_S: Final = 0.5
"""How often a waiting call looks up: where a lock can't be interrupted (Windows), Ctrl-C is seen
then; and so is a loop that has ended in spite of it all."""


class BackgroundLoop:
    """A trio loop on a thread of its own.

    Raises:
        OSError: the host has no descriptors or threads for it.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._ready = Flag()
        self._failure: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._finished: type[BaseException] = RuntimeError
        self._nursery: trio.Nursery | None = None
        self._thread = threading.Thread(target=self._run, name="microvm-sync", daemon=True)
        self._thread.start()
        while not self._ready.wait(LOOK_UP_S):
            pass
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        import trio

        try:
            trio.run(self._main)
        except BaseException as error:
            if self._ready.is_set():
                log.exception("The loop has failed, and its machines with it.")
            self._failure = error
        self._ready.set()

    async def _main(self) -> None:
        import trio

        # Kept: at the interpreter's very end, when the last objects go, nothing can be imported.
        self._finished = trio.RunFinishedError
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._nursery:
            self._ready.set()
            await trio.sleep_forever()

    @property
    def foreign(self) -> bool:
        """Whether this is the copy that a forked child has of its parent's loop."""
        return self._pid != os.getpid()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether the caller is on its thread."""
        return threading.current_thread() is self._thread

    # --- for other threads ----------------------------------------------------------------

    def call(
        self,
        work: Callable[[], Awaitable[T]],
        undo: Callable[[T], object] | None = None,
        *,
        bounded: bool = True,
    ) -> T:
        """Do `work` on the loop and return what it does.

        Args:
            work: Run as a task; cancelled when the caller is interrupted or its deadline comes.
            undo: Called with the result, on the caller's thread, if there is nobody to take it.
            bounded: Whether the deadlines around the caller count. For closing they don't.

        Raises:
            TooSlowError: a deadline around the caller came first.
            RuntimeError: called on the loop's own thread, in a forked child, or at the very end.
        """
        self.check_usable()
        call = Call(work, bounded=bounded)
        try:
            self.start(call)
            self.wait(call.done)
        except BaseException:  # KeyboardInterrupt, or what a signal handler raised
            self.tell(call.cancel)
            self.wait(call.done)  # a second Ctrl-C does not wait
            if call.completed and undo is not None:
                undo(call.value)
            raise
        return call.result()

    def hold(self, enter: Callable[[], AbstractAsyncContextManager[T]]) -> Held[T]:
        """A context manager that holds an async one open on the loop, in a task of its own."""
        return Held(self, enter)

    def soon(self, work: Callable[[], Awaitable[object]]) -> None:
        """Have `work` done without waiting; from any thread, and never fails."""
        if not self.foreign:
            self.start(Call(work, bounded=False))

    def stop(self) -> None:
        """End all that is held, and the loop. Waits for it, `STOP_WITHIN_S` at most."""
        self.tell(self._cancel_all)
        self._thread.join(STOP_WITHIN_S)
        if self._thread.is_alive():
            log.warning("A machine had not ended after %g s; it is left.", STOP_WITHIN_S)

    def _cancel_all(self) -> None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()

    # --- their parts ----------------------------------------------------------------------

    def check_usable(self) -> None:
        """Raise what is to be said to a caller who can't wait for this loop."""
        if self.foreign:
            raise RuntimeError(
                "This machine belongs to the process that this one was forked from; "
                "start one of your own here."
            )
        if self.is_current:
            raise RuntimeError("microvm.sync can't be called from a machine's own callbacks.")

    def start(self, call: Call[Any]) -> None:
        """Have a call's task started, or drop the call if the loop has ended."""

        def begin() -> None:
            assert self._nursery is not None
            call.begun = True
            try:
                self._nursery.start_soon(call.run)
            except RuntimeError:  # the nursery is closed: the loop is about to end
                call.drop()

        if not self.tell(begin):
            call.drop()

    def tell(self, function: Callable[[], object]) -> bool:
        """Have a function called on the loop's thread, after those told before; False: it ended."""
        assert self._token is not None
        try:
            self._token.run_sync_soon(function)
        except self._finished:
            return False
        return True

    def wait(self, flag: Flag) -> None:
        """Wait for what the loop sets, or for the loop's end."""
        while not flag.wait(LOOK_UP_S):
            if not self.alive:
                return


_lock = threading.Lock()
_loop: BackgroundLoop | None = None
_exiting = False


def background_loop() -> BackgroundLoop:
    """This process's loop, started if there is none yet."""
    global _loop
    with _lock:
        if _exiting:
            raise RuntimeError("The program exits: no machine can be started any more.")
        if _loop is None or not _loop.alive:
            _loop = BackgroundLoop()
        return _loop


def _stop_at_exit() -> None:
    global _exiting
    with _lock:
        _exiting = True
        loop = _loop
    if loop is not None:
        loop.stop()


_fork_done = Flag()


def _hold_still_for_fork() -> None:
    """Have the loop's thread wait between two tasks: it then holds no lock and imports nothing.

    What a thread was importing when its process forked is left half done in the child.
    """
    global _fork_done
    loop = _loop
    if loop is None or not loop.alive or loop.is_current:
        return
    still, _fork_done = Flag(), Flag()

    def hold(done: Flag = _fork_done) -> None:
        still.set()
        done.wait(FORK_WITHIN_S)

    if loop.tell(hold):
        still.wait(FORK_WITHIN_S)


def _go_on_in_parent() -> None:
    _fork_done.set()


def _forget_in_child() -> None:
    global _loop, _lock, _exiting
    _loop, _lock, _exiting = None, threading.Lock(), False


atexit.register(_stop_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_hold_still_for_fork,
        after_in_parent=_go_on_in_parent,
        after_in_child=_forget_in_child,
    )
