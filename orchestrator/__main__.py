"""One command for everything: `tailtune VERB ...`, or `python -m orchestrator VERB ...`."""

import difflib
import importlib
import sys
from collections.abc import Sequence

# Help must come at once: nothing is imported here that loads torch, Ray, MLflow or the settings.
from orchestrator.parsers import VERBS
from trainables.command_line import steady_output
from trainables.machine import process_began
from trainables.shown_commands import SCRIPT

HELP = ("-h", "--help", "help")
TIMED = ("sweep", "ablate", "resume")
"""The verbs that say how long they took, from the moment at which somebody entered the command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb, or lists all. Returns the exit code: the verb's own, or 2 for a word that is no verb."""
    verb, *words = (sys.argv[1:] if arguments is None else list(arguments)) or [""]
    if not verb or verb in HELP:
        with steady_output():
            print(overview())
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"error: {verb!r} is no verb; allowed: {', '.join(VERBS)}{hint}", file=sys.stderr)
        return 2
    if any(word in HELP[:2] for word in words) and not (verb == "resume" and words[0] not in HELP):
        with steady_output():
            VERBS[verb].parser().print_help()
        return 0
    run = importlib.import_module(VERBS[verb].module).main
    code: int = run(words, entered=process_began()) if verb in TIMED else run(words)
    return code


def overview() -> str:
    """All verbs, each with what it does."""
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.parser().sentence}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            f"usage: {SCRIPT} VERB ...",
            "",
            "Finds the settings of meta-learned re-weighting that fit your images, and proves what helps.",
            "",
            *lines,
            "",
            f"{SCRIPT} VERB --help shows the options of a verb. A first sweep: {SCRIPT} sweep digits_lt",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
