"""Progress bars on stderr for work longer than a second; silent when that is no terminal."""

import sys
import threading
from collections.abc import Callable
from typing import Any, Self

_DELAY_S = 1.0


class Progress:
    """Counts steps: call it with what begins. Shown late, so that short work shows nothing."""

    def __init__(self, total: int = 0) -> None:
        self._started = False
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        if not sys.stderr.isatty():
            return
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            *self._columns(progress),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("reading", total=total, rate="")
        self._timer = threading.Timer(_DELAY_S, self._show)
        self._timer.daemon = True

    def _columns(self, progress: Any) -> list[Any]:
        return [progress.MofNCompleteColumn(), progress.TimeElapsedColumn()]

    def _show(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._started = True
                self._bar.start()

    def __call__(self, what: str) -> None:
        """The next step begins."""
        if self._timer is not None:
            self._bar.update(self._task, description=what, advance=1)

    def __enter__(self) -> Self:
        """Starts the clock."""
        if self._timer is not None:
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Takes the bar away."""
        if self._timer is None:
            return
        self._timer.cancel()
        with self._lock:
            self._timer = None  # a late timer finds nothing to show
            if self._started:
                self._bar.stop()


class RowProgress(Progress):
    """Rows of one file after the other, with their rate and the time left."""

    def _columns(self, progress: Any) -> list[Any]:
        return [
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(),
        ]

    def of(
        self, what: str, num_rows: int | None, num_items: int | None, block_size: int
    ) -> Callable[[int, int], None] | None:
        """Takes (rows done, gallery items that the next block of rows has passed)."""
        if self._timer is None:
            return None
        self._bar.update(self._task, description=what, total=num_rows, completed=0, rate="")

        def update(rows_done: int, items_done: int) -> None:
            rows = float(rows_done)
            if num_rows is not None and num_items:
                rows += min(block_size, num_rows - rows_done) * items_done / num_items
            speed = self._bar.tasks[0].speed
            rate = "" if not speed else f"{speed:,.0f} rows/s"
            self._bar.update(self._task, completed=rows, rate=rate)

        return update
