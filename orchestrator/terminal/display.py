"""What a command shows from its first second to its end: one live display in a terminal, lines with the time elsewhere."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

GAP = "  "
"""Between two parts of a line."""
SHOWN_AFTER_S = 3.0
"""Seconds after which a phase says how long it has lasted."""


class Display:
    """Shows the phase of a command, and below it what somebody else has to show. A context manager.

    Args:
        console: where to print.
        clock: seconds since 1970.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.time) -> None:
        self.console, self.clock = console, clock
        self._phase, self._since = "", 0.0
        self._body: Callable[[int], list[Text]] = lambda width: []
        self._live = Live(console=console, refresh_per_second=4, transient=True, get_renderable=self.render)

    def __enter__(self) -> "Display":
        """Starts the display."""
        if self.console.is_terminal:
            with suppress(Exception, SystemExit):  # rich may have another display open, or find no terminal any more
                self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Removes the display. What was printed stays."""
        with suppress(Exception, SystemExit):
            self._live.stop()

    def phase(self, text: str) -> None:
        """Says what the command does from now on."""
        self._phase, self._since = text, self.clock()
        if not self.console.is_terminal:
            self.console.print(f"{time_of_day(self._since)} {text}", highlight=False, markup=False, soft_wrap=True)
        elif self._live.is_started:
            self._live.refresh()  # the imports that follow may keep the thread of the display waiting

    def show(self, body: Callable[[int], list[Text]]) -> None:
        """Lets somebody show lines below the phase. `body` takes the width and returns lines that fit it."""
        self._body = body

    def hide(self) -> None:
        """Takes these lines away, and the phase with which they came."""
        self._body, self._phase = lambda width: [], ""

    def begin_trials(self) -> None:
        """The phase is over: what is shown below says more."""
        self._phase = ""

    def render(self) -> Group:
        """All lines as they are now."""
        width = self.console.width
        lines = self._body(width)
        if self._phase:
            seconds = self.clock() - self._since
            lasted = f"{GAP}{seconds:.0f} s" if seconds >= SHOWN_AFTER_S else ""
            lines = [Text(shortened(f"{self._phase} ...", width - len(lasted)) + lasted, "dim"), *lines]
        return Group(Text(), *lines) if lines else Group()


def time_of_day(seconds: float) -> str:
    """`08:25:01` of seconds since 1970, where this machine is."""
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def packed(parts: Sequence[Text], width: int, indent: str = "") -> list[Text]:
    """Parts side by side on as few lines as the width allows, without gaps that grow; no part is cut in two unless it is wider
    than a line.
    """
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + len(GAP) + part.cell_len <= width:
            lines[-1].append(GAP).append_text(part)
        else:
            part = (
                part
                if cell_len(indent) + part.cell_len <= width
                else Text(shortened(part.plain, width - len(indent)), part.style)
            )
            lines.append(Text(indent).append_text(part))
    return lines


def shortened(text: str, width: int) -> str:
    """A text that is not wider than `width`: it ends after a whole word and an ellipsis, or within a word that is too long."""
    if cell_len(text) <= width:
        return text
    words = text.split(" ")
    while len(words) > 1 and cell_len(" ".join(words)) + 2 > width:
        words.pop()
    kept = " ".join(words)
    if cell_len(kept) + 2 <= width:
        return f"{kept} …"
    while kept and cell_len(kept) + 1 > width:
        kept = kept[:-1]
    return f"{kept}…" if width > 0 else ""
