"""A page in a real browser (Chromium, headless), after its scripts have run."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from tools import need

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Seen(NamedTuple):
    """What a browser made of a page."""

    dom: str
    console: list[str]
    """Errors, warnings and messages of the scripts."""

    @property
    def text(self) -> str:
        """The text that a person sees."""
        without = re.sub(r"<(script|style|svg)\b.*?</\1>", " ", self.dom, flags=re.DOTALL)
        return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", without))


def open_in_browser(page: Path, profile: Path, picture: Path, size: str = "1280,2400", dark: bool = False) -> Seen:
    """Opens a page and waits until it has drawn.

    Args:
        page: its file.
        profile: folder of the browser.
        picture: where a screenshot is kept.
        size: of the window.
        dark: whether the person prefers dark pages.
    """
    need("" if BROWSER else "no Chromium here (Debian: apt install chromium)")
    assert BROWSER
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", f"--window-size={size}"]
    command += ["--hide-scrollbars", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=30000", "--timeout=90000"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    command += ["--dump-dom", f"--screenshot={picture}", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return Seen(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])
