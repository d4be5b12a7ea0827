"""One bar for all long work: a line in a terminal, one notebook output, a few lines in a log."""

from __future__ import annotations

import contextlib
import contextvars
import html
import os
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Protocol, TypeVar

from workbench import notebook
from workbench.progress.silence import others_silent as others_silent

Item = TypeVar("Item")
CURRENT = ".progress"
_WIDTH = 24
_TERMINAL_HZ, _LIVE_HZ, _BATCH_HZ = 10.0, 5.0, 0.5
_LOG_SHARE, _LOG_SECONDS, _LOG_SHORTEST = 0.1, 30.0, 1.0


@contextlib.contextmanager
def progress(
    title: str,
    *,
    total: float | None = None,
    unit: str = "steps",
    quiet: bool | None = None,
    even: bool = True,
    patience: float = 0.0,
    tell: Callable[[Sequence[Bar]], object] | None = None,
) -> Iterator[Bar]:
    """Show the progress of the block; nested blocks share the display of the outermost one.

    Args:
        title: What is being done, for example ``Converting``.
        total: Number of units, or None when it is not known.
        unit: What is counted, in the plural.
        quiet: Show nothing; None asks ``WORKBENCH_QUIET``.
        even: The units take about the same time; else the time that is left is not told.
        patience: Seconds before anything is drawn: work that ends sooner leaves nothing behind.
            From then on the clock goes on by itself, for work that cannot say how far it is.
        tell: Gets this bar and the nested ones now and then, outermost first, and draws them
            itself: a widget of its own. Nested blocks stay with the display that is open already.

    Yields:
        The bar; call its ``advance`` as often as you like, drawing is limited by a clock.
    """
    bar = Bar(title, total=total, unit=unit, even=even)
    surface = _open(bar, quiet=quiet, tell=tell)
    bar.surface = surface
    pulse = _Pulse(surface, patience) if patience and surface.bars[0] is bar else None
    surface.draw(force=pulse is None)
    outcome = "done"
    try:
        yield bar
    except BaseException as error:
        outcome = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        raise
    finally:
        if pulse is not None:
            pulse.end()
        bar.outcome = outcome
        _close(bar, surface)


def track(
    items: Iterable[Item],
    title: str,
    *,
    total: float | None = None,
    unit: str = "items",
    quiet: bool | None = None,
) -> Iterator[Item]:
    """Yield the items and show how many are done; ``total`` defaults to their length, if any."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(title, total=total, unit=unit, quiet=quiet) as bar:
        for item in items:
            yield item
            bar.advance()


class Bar:
    """The state of one piece of long work.

    Attributes:
        title: What is being done.
        total: Number of units or None.
        done: Units done.
        note: Last remark, for example ``loss 1.2``.
        outcome: None while it goes on, then ``done``, ``failed`` or ``interrupted``.
    """

    def __init__(self, title: str, *, total: float | None, unit: str, even: bool = True) -> None:
        self.title, self.total, self.unit = title, total, unit
        self._even = even
        self.done: float = 0
        self.note = ""
        self.outcome: str | None = None
        self.surface: _Surface | None = None
        self._started = time.monotonic()

    def advance(self, amount: float = 1, *, note: str | None = None) -> None:
        """Add to what is done; ``note`` replaces the remark behind the bar."""
        self.update(done=self.done + amount, note=note)

    def update(
        self, *, done: float | None = None, total: float | None = None, note: str | None = None
    ) -> None:
        """Set what is given and leave the rest."""
        self.done = self.done if done is None else done
        self.total = self.total if total is None else total
        self.note = self.note if note is None else note
        if self.surface is not None:
            self.surface.draw()

    @property
    def elapsed(self) -> float:
        """Seconds since the bar began."""
        return time.monotonic() - self._started

    @property
    def share(self) -> float | None:
        """What is done as a share of the total in [0, 1], or None when no total is known."""
        return min(1.0, self.done / self.total) if self.total else None

    def line(self) -> str:
        """Return the state in one line, with the time that is left where it can be told."""
        parts = [self.title]
        if self.share is not None:
            filled = round(self.share * _WIDTH)
            parts.append("█" * filled + "░" * (_WIDTH - filled))
            parts.append(f"{self.share:4.0%}")
        parts.append(self._count())
        parts.append(clock(self.elapsed))
        if self._even and self.share and self.share < 1 and self.elapsed > 3:
            parts.append(f"({clock(self.elapsed / self.share - self.elapsed)} left)")
        if self.note:
            parts.append(f"· {self.note}")
        return " ".join(part for part in parts if part)

    def brief(self) -> str:
        """Return the state in few words, to stand inside another line."""
        return ", ".join(
            part for part in (f"{self.title} {self._count()}".strip(), self.note) if part
        )

    def summary(self) -> str:
        """Return the line that stays: ``Converting: 120 tensors, 4.2 s, loss 1.2``."""
        parts = [self._count(), duration(self.elapsed), self.note]
        said = ", ".join(part for part in parts if part)
        trouble = "" if self.outcome in (None, "done") else f"{self.outcome} after "
        return f"{self.title}: {trouble}{said}"

    def _count(self) -> str:
        if not self.done and self.total is None:
            return ""
        if self.total is None or (self.outcome == "done" and self.done == self.total):
            return f"{self.done:g} {self.unit}"
        return f"{self.done:g}/{self.total:g} {self.unit}"


def clock(seconds: float) -> str:
    """Return ``0:07``, ``12:30`` or ``1:02:03``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """Return a length of time for reading: ``340 ms``, ``4.2 s``, ``3 min 12 s``, ``1 h 2 min``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


class _Surface(Protocol):
    """Where bars are drawn; the first of ``bars`` owns it."""

    bars: list[Bar]

    def draw(self, *, force: bool = False) -> None: ...
    def wait(self, seconds: float) -> None: ...
    def close(self) -> None: ...


_lock = threading.RLock()
_current: _Surface | None = None


def _open(
    bar: Bar, *, quiet: bool | None, tell: Callable[[Sequence[Bar]], object] | None = None
) -> _Surface:
    global _current
    if quiet is None:
        quiet = os.environ.get("WORKBENCH_QUIET", "") not in ("", "0")
    if quiet:
        return _Silent(bar)
    with _lock:
        if _current is not None:
            _current.bars.append(bar)
            return _current
        if tell is not None:
            _current = _Told(bar, tell)
        elif notebook.in_kernel():
            _current = _Live(bar, hz=_LIVE_HZ if notebook.live() else _BATCH_HZ)
        elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            _current = _Terminal(bar)
        else:
            _current = _Log(bar)
        return _current


def _close(bar: Bar, surface: _Surface) -> None:
    global _current
    with _lock:
        if bar not in surface.bars:
            return  # the owner of the display has closed it
        if surface.bars[0] is not bar:
            surface.bars.remove(bar)
            surface.draw(force=True)
            return
        if surface is _current:
            _current = None
        surface.bars = [bar]
        surface.close()


class _Pulse:
    """Draws a surface each second once its patience is over, until the work ends."""

    def __init__(self, surface: _Surface, patience: float) -> None:
        surface.wait(patience)
        self._surface, self._patience, self._over = surface, patience, threading.Event()
        # in the cell's own context: what another thread displays would go anywhere
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop drawing."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        pause = self._patience
        while not self._over.wait(pause):
            self._surface.draw()
            pause = 1.0


class _Silent:
    def __init__(self, bar: Bar) -> None:
        self.bars = [bar]

    def draw(self, *, force: bool = False) -> None:
        pass

    def wait(self, seconds: float) -> None:
        pass

    def close(self) -> None:
        pass


class _Timed:
    """Draws at most ``hz`` times a second; a drawing in another thread is not waited for."""

    def __init__(self, bar: Bar, *, hz: float) -> None:
        self.bars = [bar]
        self.drawn = False
        self._pause, self._next, self._earliest = 1 / hz, 0.0, 0.0

    def wait(self, seconds: float) -> None:
        self._earliest = time.monotonic() + seconds * 0.99

    def draw(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if now < self._earliest or (now < self._next and not force):
            return
        self._next = now + self._pause
        with _lock:
            self.drawn = True
            self._draw(self.bars)

    def close(self) -> None:
        if self.drawn or not self._earliest:
            self._close()

    def _close(self) -> None:
        raise NotImplementedError

    def _draw(self, bars: list[Bar]) -> None:
        raise NotImplementedError


class _Told(_Timed):
    """Somebody else draws it."""

    def __init__(self, bar: Bar, tell: Callable[[Sequence[Bar]], object]) -> None:
        super().__init__(bar, hz=_LIVE_HZ)
        self._tell = tell

    def _close(self) -> None:
        pass

    def _draw(self, bars: list[Bar]) -> None:
        self._tell(tuple(bars))


class _Terminal(_Timed):
    def __init__(self, bar: Bar) -> None:
        super().__init__(bar, hz=_TERMINAL_HZ)

    def _draw(self, bars: list[Bar]) -> None:
        columns = shutil.get_terminal_size().columns - 1
        inner = [f"· {bar.brief()}" for bar in bars[1:][-1:]]
        text = _fitted(" ".join([bars[0].line(), *inner]), columns)
        sys.stderr.write(f"\r\x1b[2K{text}")
        sys.stderr.flush()

    def _close(self) -> None:
        sys.stderr.write(f"\r\x1b[2K{self.bars[0].summary()}\n")
        sys.stderr.flush()


class _Live(_Timed):
    """One output of the cell; in batch it is redrawn seldom, so that the saved file stays small."""

    def __init__(self, bar: Bar, *, hz: float) -> None:
        super().__init__(bar, hz=hz)
        self._display = notebook.Display()

    def _draw(self, bars: list[Bar]) -> None:
        self._display.show(_bundle([bar.line() for bar in bars]))
        folder = notebook.run_folder()
        if folder is not None:  # read by whoever waits for this run
            partial = folder / f"{CURRENT}.partial"
            said = " · ".join(bar.brief() for bar in bars).replace("\n", " ")
            partial.write_text(said, encoding="utf-8")
            partial.replace(folder / CURRENT)

    def _close(self) -> None:
        self._display.show(_bundle([self.bars[0].summary()]))
        folder = notebook.run_folder()
        if folder is not None:
            Path(folder / CURRENT).unlink(missing_ok=True)


class _Log:
    """One line for each tenth or half minute; work of less than a second leaves none."""

    def __init__(self, bar: Bar) -> None:
        self.bars = [bar]
        self._share, self._time, self._patient = 0.0, 0.0, False

    def wait(self, seconds: float) -> None:
        self._patient = True

    def draw(self, *, force: bool = False) -> None:
        first = self.bars[0]
        now, share = first.elapsed, first.share or 0.0
        due = share - self._share >= _LOG_SHARE and now - self._time >= _LOG_SHORTEST
        if share < 1 and (due or now - self._time >= _LOG_SECONDS):
            self._share, self._time = share, now
            sys.stderr.write(f"{first.line()}\n")
            sys.stderr.flush()

    def close(self) -> None:
        trouble = self.bars[0].outcome != "done" and not self._patient
        if self.bars[0].elapsed >= _LOG_SHORTEST or trouble:
            sys.stderr.write(f"{self.bars[0].summary()}\n")
            sys.stderr.flush()


def _bundle(lines: list[str]) -> dict[str, str]:
    # Only tags that survive nbconvert's sanitiser: the last state stays readable in the saved file.
    rows = "".join(f"<div>{html.escape(line)}</div>" for line in lines)
    return {"text/plain": "\n".join(lines), "text/html": f"<div>{rows}</div>"}


def _fitted(text: str, columns: int) -> str:
    """Cut ``text`` to the columns of a terminal; East Asian wide characters take two."""
    used = 0
    for index, character in enumerate(text):
        used += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used > columns:
            return text[:index]
    return text
