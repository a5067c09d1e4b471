"""Stop signals are collected, deferred, or raise KeyboardInterrupt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from dpeval.errors import RunInterrupted
from dpeval.system.processes.signals import (
    STOP_SIGNALS,
    interrupting,
    stop_signals,
    unsent_to_children,
)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_every_stop_signal_is_collected_and_then_has_its_effect_again(
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)
    with stop_signals() as received:
        signal.raise_signal(number)
        assert received == [number.name]
    assert signal.getsignal(number) is before


def test_a_context_within_another_collects_into_the_same_list() -> None:
    with stop_signals() as outer:
        with stop_signals() as inner:
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
    assert inner is outer
    assert outer == ["SIGTERM", "SIGHUP"]


def test_two_hangups_of_one_dropped_connection_are_one_request_to_stop() -> None:
    with stop_signals() as received:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
    assert received == ["SIGHUP"]


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as received, interrupting():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert received == []


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_every_stop_signal_interrupts_a_command(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), interrupting():
        signal.raise_signal(number)


@pytest.mark.parametrize(
    ("error", "raised"), [(AttributeError, KeyboardInterrupt), (RunInterrupted, RunInterrupted)]
)
def test_an_interrupt_for_which_a_library_raises_its_own_error_is_one_all_the_same(
    error: type[Exception], raised: type[BaseException]
) -> None:
    def library() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise error("in the middle of something") from None

    with pytest.raises(raised), interrupting():
        library()


def test_a_signal_for_the_group_spares_children_and_reaches_this_process_late() -> None:
    with stop_signals() as received:
        with unsent_to_children():
            child = subprocess.Popen(
                [sys.executable, "-c", "input(); print('alive')"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                restore_signals=False,
            )
            os.kill(child.pid, signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        out, _ = child.communicate(b"\n")
    assert out == b"alive\n"
    assert received == ["SIGTERM"]
