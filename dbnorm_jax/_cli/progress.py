"""A progress bar on stderr for work longer than a second; silent when that is no terminal."""

import sys
import threading
from types import TracebackType
from typing import Self

_DELAY_S = 1.0


class Progress:
    """Counts steps: call it with what begins. Shown late, so that short work shows nothing."""

    def __init__(self, total: int) -> None:
        """`total`: how many steps will begin."""
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
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("reading", total=total)
        self._timer = threading.Timer(_DELAY_S, self._show)
        self._timer.daemon = True

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Takes the bar away."""
        if self._timer is None:
            return
        self._timer.cancel()
        with self._lock:
            self._timer = None  # a late timer finds nothing to show
            if self._started:
                self._bar.stop()
