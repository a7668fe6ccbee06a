"""Goes on with a sweep or an ablation that was interrupted or killed; without a name, lists what can go on.

python -m orchestrator.resume [NAME | FOLDER] [key=value ...] [options of sweep or ablate]
"""

import argparse
import shlex
import sys
from pathlib import Path

from orchestrator import parsers
from orchestrator.config.sweep_config import read_sweep
from orchestrator.ledger.events import Kind
from orchestrator.ledger.ledger import LEDGER, last, read_ledger
from orchestrator.request import store_of
from trainables.command_line import steady_output, typed_path
from trainables.config_file import ConfigError
from trainables.machine import process_began
from trainables.shown_commands import shown_command


def main(arguments: list[str], entered: float | None = None) -> int:
    """Returns the exit code: that of the sweep or of the ablation. `entered`: when the command was entered; None means now."""
    with steady_output():
        given = parsers.resume().parse_args(arguments)
        try:
            if given.name is None:
                print("\n".join(unfinished(parsers.RESULTS)) or f"nothing in {parsers.RESULTS} is unfinished")
                return 0
            results = results_of(given.words)
            if isinstance(results, str):  # in a store, from where what is missing here is fetched
                store_of(results, parsers.RESULTS / typed_path(given.name).name, resume=True)
            folder = folder_of(given.name, parsers.RESULTS if isinstance(results, str) else results or parsers.RESULTS)
            config = read_sweep(folder / "sweep.yaml")
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    words = ["--name", folder.name, "--resume", *given.words]
    if folder.parent != parsers.RESULTS and results is None:
        words += ["--results", str(folder.parent)]
    if config.ablation:
        from orchestrator import ablate

        return ablate.main(words, entered=entered)
    from orchestrator import sweep

    return sweep.main(words, entered=entered)


def results_of(words: list[str]) -> Path | str | None:
    """What an option --results among the words says; None without one."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--results", type=parsers.typed_results)
    results: Path | str | None = parser.parse_known_args(words)[0].results
    return results


def folder_of(name: str, results: Path) -> Path:
    """The results folder that somebody means by a name or a path.

    Args:
        name: what they typed.
        results: the folder of all results.

    Raises:
        ConfigError: when there is no sweep; the message names those that can go on.
    """
    places = [results / name, typed_path(name)]
    if found := next((place for place in places if (place / LEDGER).is_file()), None):
        return found
    cure = "; ".join(unfinished(results)) or f"nothing in {results} is unfinished"
    raise ConfigError(f"command line: {name!r} is no results folder, nor the name of one in {results}; {cure}")


def unfinished(results: Path) -> list[str]:
    """The commands that go on with what is unfinished in the folder of all results."""
    commands = []
    for ledger in sorted(results.glob(f"*/{LEDGER}")):
        try:
            end = last(read_ledger(ledger.parent), Kind.SWEEP_END, Kind.SWEEP_START, Kind.SWEEP_RESUME)
        except (ConfigError, OSError):  # damaged, or none of ours
            continue
        if not end.get("complete", False):
            place = ledger.parent.name if results == parsers.RESULTS else str(ledger.parent)
            commands.append(shown_command("orchestrator.resume", shlex.quote(place)))
    return commands


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], process_began()))
