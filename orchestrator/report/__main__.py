"""Writes the report of a sweep or an ablation: report.html, one file to look at in a browser, and figures/ for papers.

    python -m orchestrator.report RESULTS/NAME [--watch] [--open] [--trial T] [--leaderboard] [--json]

Made from the tables and the ledger alone: needs neither Ray nor MLflow nor a network, and a sweep may be running.

Exit codes: 0 done; 1 the folder is damaged, or the page cannot be written; 2 there is no such results folder or trial; 130
interrupted.
"""

import argparse
import shlex
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Tables and plotly take seconds to import: a wrong input is answered before any of them is loaded.
from orchestrator import parsers
from orchestrator.ledger.events import Kind
from orchestrator.ledger.ledger import read_ledger, start_of
from orchestrator.ledger.trial_states import check_known
from trainables.command_line import answered
from trainables.config_file import ConfigError
from trainables.shown_commands import shown_command


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    return answered(parsers.report(), arguments, _report)


def _report(given: argparse.Namespace, answer: dict[str, Any]) -> int:
    answer |= {"report": None, "figures": None, "leaderboard": None}
    try:
        events = read_ledger(given.folder)
        start_of(events)
        known = [event["trial_id"] for event in events if event["event"] == Kind.SUGGEST]
        for wanted in given.trial:
            check_known(wanted, known, str(given.folder))
        from orchestrator.outcome.leaderboard import write_leaderboard
        from orchestrator.report.writing import FIGURES, REPORT

        if given.leaderboard:
            answer["leaderboard"] = places = write_leaderboard(given.folder, events)
            print("leaderboard", *places, flush=True)
        report(given.folder, given.trial, given.watch, given.open)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        answer["error"] = str(error)
        return 2
    except (OSError, ValueError, LookupError) as error:  # a full disk; with damaged tables pyarrow raises errors of many types
        reason = " ".join(str(error).split())
        answer["error"] = (
            f"the report cannot be made ({type(error).__name__}: {reason}); "
            f"{shown_command('orchestrator.verify', shlex.quote(str(given.folder)))} names what was changed in the folder"
        )
        print(f"error: {answer['error']}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the report stays as it was last", file=sys.stderr)
        return 130
    answer |= {"report": given.folder / REPORT, "figures": given.folder / FIGURES}
    return 0


def report(folder: Path, trials: Sequence[str], watches: bool, opens: bool) -> None:
    """Writes a report, again and again with `watches`."""
    from orchestrator.report.watching import watch
    from orchestrator.report.writing import FIGURES, write_report

    def written(path: Path) -> None:
        print(f"report    {path}", flush=True)
        if opens:
            webbrowser.open(path.resolve().as_uri())

    if watches:
        watch(folder, trials, written)
    else:
        written(write_report(folder, trials))
    print(f"figures   {folder / FIGURES}/*.svg, *.pdf", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
