"""What happens to a call in a thread when nobody wants its result any more."""

from __future__ import annotations

import threading

import trio

from snapfs.fuse.threads import Threads, notified


async def test_a_notification_that_waits_is_left_to_itself_at_a_deadline() -> None:
    threads, answered, left = Threads(), threading.Event(), threading.Event()

    def notify() -> None:
        answered.wait()
        left.set()

    with trio.move_on_after(0.01) as scope:
        await notified(threads.notify, notify)
    assert scope.cancelled_caught
    assert not left.is_set()
    answered.set()
    await trio.to_thread.run_sync(left.wait)
