from __future__ import annotations

import io

from router.terminal import Display


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_come_less_and_less_often() -> None:
    now = 0.0
    stream = io.StringIO()
    with Display(stream, lambda: now) as display:
        meter = display.meter("loading", 1000, "rows")
        for _ in range(20):
            now += 1
            meter.add(10)
    lines = stream.getvalue().splitlines()
    assert lines == [
        "loading: 5%, 50 rows, 10 rows/s, 95 s left",
        "loading: 13%, 130 rows, 10 rows/s, 87 s left",
    ]


def test_what_was_there_before_says_nothing_about_speed() -> None:
    now = 0.0
    display = Display(io.StringIO(), lambda: now)
    meter = display.meter("loading", 1000, "rows")
    meter.skip(500)
    now = 10.0
    meter.add(100)
    assert meter.line() == "loading: 60%, 100 rows, 10 rows/s, 40 s left"


def test_a_total_may_be_measured_otherwise_than_rows() -> None:
    now = 0.0
    meter = Display(io.StringIO(), lambda: now).meter("loading", 5000, "rows")
    now = 2.0
    meter.add(10, 0)
    meter.add(0, 2500)
    assert meter.line() == "loading: 50%, 10 rows, 5 rows/s, 2 s left"
    assert repr(meter) == f"<Meter {meter.line()}>"


def test_what_is_left_shrinks_from_the_most_there_was() -> None:
    now = 0.0
    meter = Display(io.StringIO(), lambda: now).meter("replicas", 1, "MiB of log")
    now = 1.0
    meter.remain(80)
    meter.remain(20)
    assert meter.line() == "replicas: 75%, 60 MiB of log, 60 MiB of log/s, 0 s left"


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    with Display(stream) as display:
        meter = display.meter("loading", 10, "rows")
        meter.add(10)
        display.say("by the way")
        meter.end()
    assert repr(display) == "<Display live>"
    assert "by the way" in stream.getvalue()
    assert "loading" in stream.getvalue()
