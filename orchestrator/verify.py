"""Recomputes a results folder, or an exported folder: digests, tables, numbers. Names the first thing that does not match.

python -m orchestrator.verify FOLDER [--json]
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator import parsers
from orchestrator.ledger.ledger import LEDGER, LedgerError, line_digests, read_ledger, start_of
from orchestrator.ledger.paths import UnsafePath
from orchestrator.outcome.bundle import PROVENANCE, Mismatch, check_bundle
from trainables.command_line import answered
from trainables.config_file import ConfigError


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 when everything matches, 1 when something does not, 2 when there is nothing to verify."""
    return answered(parsers.verify(), arguments, _verified)


def _verified(given: argparse.Namespace, answer: dict[str, Any]) -> int:
    folder: Path = given.folder
    answer |= {"folder": str(folder), "matches": None, "seen": [], "mismatch": None}
    try:
        for seen in verify(folder):
            print(seen, flush=True)
            answer["seen"].append(seen)
    except (Mismatch, LedgerError, UnsafePath) as error:
        print(f"does not match: {error}", file=sys.stderr)
        answer |= {"matches": False, "mismatch": str(error)}
        return 1
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        answer["error"] = str(error)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    print(f"everything in {folder} matches")
    answer["matches"] = True
    return 0


def verify(folder: Path) -> Iterator[str]:
    """Checks a folder; says what was seen, one thing after another.

    Raises:
        Mismatch: naming the first thing that is not what was written.
        LedgerError: when the ledger, or a file whose digest it holds, is not what was written.
        ConfigError: when the folder is none of ours.
    """
    if (folder / LEDGER).exists():
        events = read_ledger(folder)
        start_of(events)
        yield f"ledger of {len(events)} events, an unbroken chain"
        from orchestrator.outcome.checks import CHECKS, Source  # loads Optuna, which a wrong folder or an export does not need

        source = Source(folder, events, line_digests(folder))
        for check in CHECKS:
            yield check(source)
        from orchestrator.report.checking import check_report, check_suspects

        yield check_report(folder)
        yield check_suspects(folder)
        for part in sorted(folder.glob(f"search_*/{LEDGER}")):  # an ablation of whole searches
            yield from (f"{part.parent.name}: {seen}" for seen in verify(part.parent))
    elif (folder / PROVENANCE).exists():
        provenance, number = check_bundle(folder)
        yield f"{number} files of trial {provenance['trial_id']} of the sweep {provenance['sweep']}, as they were exported"
    else:
        raise ConfigError(f"{folder} holds neither {LEDGER} nor {PROVENANCE}; allowed: a results folder, or an exported folder")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
