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
from orchestrator.ledger.events import Kind
from orchestrator.ledger.ledger import read_ledger, start_of
from orchestrator.ledger.trial_states import check_known
from trainables.command_line import (
    CommandLine,
    add_json,
    answering,
    asks_for_json,
    ended_like_ctrl_c,
    steady_output,
    typed_path,
)
from trainables.config_file import ConfigError


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    parser = CommandLine(prog="python -m orchestrator.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=typed_path, help="results folder of a sweep or an ablation")
    parser.add_argument("--watch", action="store_true", help="write it again while the sweep runs; the page follows")
    parser.add_argument("--open", action="store_true", help="open it in a browser")
    parser.add_argument(
        "--trial", action="append", default=[], metavar="T", help="show this trial class by class, too, as t0007; may be repeated"
    )
    parser.add_argument(
        "--leaderboard",
        action="store_true",
        help="also write leaderboard.json and .md, from readings of the sealed test set alone",
    )
    add_json(parser)
    with steady_output(), ended_like_ctrl_c(), answering(asks_for_json(arguments)) as answer:
        given = parser.parse_args(arguments)
        answer |= {"report": None, "figures": None, "leaderboard": None, "error": None}
        answer["exit_code"] = code = _report(given, answer)
    return code


def _report(given: argparse.Namespace, answer: dict[str, Any]) -> int:
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
            f"python -m orchestrator.verify {shlex.quote(str(given.folder))} names what was changed in the folder"
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
