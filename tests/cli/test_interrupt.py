"""A Ctrl-C is heard even where its exception is lost."""

from __future__ import annotations

import contextlib
import signal
import threading

import pytest

from laguna_ref.cli.interrupt import interruptible


def test_an_exception_that_was_dropped_is_raised_again() -> None:
    with interruptible() as check:
        check()
        with contextlib.suppress(KeyboardInterrupt):  # as a callback of a C library does
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()


def test_the_handler_before_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_may_use_it_too() -> None:
    done = []

    def work() -> None:
        with interruptible() as check:
            check()
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
