"""What a bar tells."""

from __future__ import annotations

from rich.progress import Progress

from backcast.progress import Rate


def test_a_bar_tells_its_rate():
    now = 0.0
    shown = Progress(get_time=lambda: now, disable=True)
    bar = shown.add_task("rows", total=5000)
    assert str(Rate().render(shown.tasks[0])) == ""
    for now in (2.0, 4.0, 6.0):  # noqa: B007 (what the clock reads)
        shown.advance(bar, 10)
    assert str(Rate().render(shown.tasks[0])) == "5.0/s"
    now = 7.0
    shown.advance(bar, 4970)
    assert str(Rate().render(shown.tasks[0])) == "998/s"
