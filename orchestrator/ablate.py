"""Runs an ablation: variants of one trial, each trained on the same seeds, compared with honest statistics.

    python -m orchestrator.ablate PLAN.yaml [key=value ...] [--name N] [--results DIR] [--resume] [--dry-run]
        [--address auto] [--cluster CLUSTER.yaml] [--down always|success|never]
    python -m orchestrator.ablate --from-sweep RESULTS/NAME [--path] [key=value ...] ...

A plan is a sweep's file with the section `ablation` in place of `space`, `search` and `scheduler`; or beside these, with
`ablation.kind: searches`, which repeats the whole search. Everything else is as in `python -m orchestrator.sweep`: ledger,
budgets, failures, tracking, resumption.

Exit codes: as those of a sweep.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import parsers
from orchestrator.request import file_and_overrides, launch_cluster, launches_cluster, read_place, read_request
from orchestrator.sweep import exit_code_of, plan, run
from trainables.config_file import ConfigError, dump_yaml
from trainables.machine import process_began

if TYPE_CHECKING:
    from orchestrator.run.prepare import SweepRequest
    from orchestrator.run.trial import Trial


def main(arguments: list[str], trainable: "type[Trial] | None" = None, entered: float | None = None) -> int:
    """Returns the exit code. The arguments are those of `orchestrator.sweep.main`."""
    entered = entered or time.time()

    def start(given: argparse.Namespace, found: list[Path]) -> int:
        launches, results = launches_cluster(given)
        with plan_file(given.plan, given.from_sweep, given.path) as file:
            request = read_ablation(file, given.overrides, given.name, results, given.resume)
            found.append(request.folder)
            if launches:
                return launch_cluster(given, request, "ablate", arguments)
        request = request._replace(cluster=read_place(given.address, given.cluster), entered=entered)
        if given.from_sweep is not None:
            show_importances(given.from_sweep)
        return plan(request) if given.dry_run else run(request, trainable)

    return exit_code_of(arguments, parse, start, "ablation")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    given = parsers.ablate().parse_intermixed_args(arguments)
    given.plan, given.overrides = file_and_overrides(given.words)
    return given


@contextmanager
def plan_file(plan: Path | None, from_sweep: Path | None, path: bool = False) -> Iterator[Path | None]:
    """The plan's file; of a sweep, a temporary file with the plan for its winner, or for the path to it.

    Raises:
        ConfigError: when both are given, or the sweep has no winner to take apart.
    """
    if from_sweep is None:
        if path:
            raise ConfigError("command line: --path is given without --from-sweep; allowed: in a plan, ablation.kind: path")
        yield plan
        return
    if plan is not None:
        raise ConfigError(f"command line: {plan} and --from-sweep {from_sweep} are both plans; allowed: one of them")
    from orchestrator.outcome.parts import plan_of_sweep  # reads the ledger, which a plan does not need

    tree = plan_of_sweep(from_sweep, path)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{from_sweep.resolve().name}_{'path' if path else 'parts'}.yaml"
        file.write_text(dump_yaml(tree), encoding="utf-8")
        yield file


def show_importances(sweep: Path) -> None:
    """Prints how important the settings were to the search: what the ablation then checks by re-training."""
    from orchestrator.terminal.importance import print_importances  # loads Optuna and scikit-learn
    from orchestrator.terminal.lines import terminal_console

    print_importances(terminal_console(), sweep)


def read_ablation(
    plan: Path | None, overrides: Sequence[str], name: str | None, results: Path | str, resume: bool = False
) -> "SweepRequest":
    """What somebody asks for, with its settings read and checked.

    Args:
        plan: the file; None means, with `resume`, the file in the results folder.
        overrides: `key=value` changes to the file.
        name: of the ablation; None means the file's name.
        results: folder of all results, or the address of one in a store, as for `read_request`.
        resume: whether to go on with an ablation.

    Raises:
        ConfigError: naming what is wrong.
    """
    if plan is None and not (resume and name):
        raise ConfigError(
            "command line: PLAN.yaml is missing; allowed: a plan, as search_spaces/ablation_table4.yaml; or --resume with the "
            "--name of an ablation"
        )
    return read_request(plan, overrides, name, results, resume, ablation=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], entered=process_began()))
