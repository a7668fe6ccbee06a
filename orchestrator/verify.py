"""Recomputes a results folder, or an exported folder: digests, tables, numbers. Names the first thing that does not match.

python -m orchestrator.verify FOLDER
"""

import argparse
import sys
from pathlib import Path

from orchestrator.ledger.ledger import LEDGER, LedgerError, line_digests, read_ledger, start_of
from orchestrator.ledger.paths import UnsafePath
from orchestrator.outcome.bundle import PROVENANCE, Mismatch, check_bundle
from orchestrator.outcome.checks import CHECKS, Source
from trainables.command_line import ended_like_ctrl_c, steady_output, typed_path
from trainables.config_file import ConfigError


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 when everything matches, 1 when something does not, 2 when there is nothing to verify."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.verify", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=typed_path, help="results folder of a sweep or an ablation, or an exported folder")
    with steady_output(), ended_like_ctrl_c():
        folder = parser.parse_args(arguments).folder
        try:
            verify(folder)
        except (Mismatch, LedgerError, UnsafePath) as error:
            print(f"does not match: {error}", file=sys.stderr)
            return 1
        except (ConfigError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130
    print(f"everything in {folder} matches")
    return 0


def verify(folder: Path) -> None:
    """Checks a folder and prints what was seen.

    Raises:
        Mismatch: naming the first thing that is not what was written.
        LedgerError: when the ledger, or a file whose digest it holds, is not what was written.
        ConfigError: when the folder is none of ours.
    """
    if (folder / LEDGER).exists():
        events = read_ledger(folder)
        start_of(events)
        print(f"ledger of {len(events)} events, an unbroken chain", flush=True)
        source = Source(folder, events, line_digests(folder))
        for check in CHECKS:
            print(check(source), flush=True)
        from orchestrator.report.checking import check_report  # importing it takes a second, which an export does not need

        print(check_report(folder), flush=True)
    elif (folder / PROVENANCE).exists():
        provenance, number = check_bundle(folder)
        print(f"{number} files of trial {provenance['trial_id']} of the sweep {provenance['sweep']}, as they were exported")
    else:
        raise ConfigError(f"{folder} holds neither {LEDGER} nor {PROVENANCE}; allowed: a results folder, or an exported folder")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
