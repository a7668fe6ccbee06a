"""What a command line asks for: the options that sweeps and ablations share, the settings, the folder, and where trials run."""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# Ray, torch and MLflow take seconds to import: a wrong input is answered before any of them is loaded.
from orchestrator.config.sweep_config import read_sweep_with_origin
from orchestrator.parsers import RESULTS
from trainables.config_file import ConfigError
from trainables.settings import refuse_secret
from trainables.shown_commands import shipped, shown_command, typed_file

if TYPE_CHECKING:
    from orchestrator.cluster.cluster_file import Cluster
    from orchestrator.copy.results_store import ResultsStore
    from orchestrator.run.prepare import SweepRequest

NAME, NAME_IN_WORDS = r"[A-Za-z0-9][A-Za-z0-9._-]*", "letters, digits, '.', '_' and '-', a letter or digit first"
"""What may be the name of a sweep and of its folder."""
DEFAULT_SWEEP = shipped()["digits_lt"]


def file_and_overrides(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file that a command line begins with, if any, and the settings to change."""
    # A file that exists is a file, also with "=" in its path: multirun/lr=0.1/sweep.yaml.
    if words and ("=" not in words[0] or os.path.isfile(os.path.expanduser(words[0]))):
        return typed_file(words[0]), list(words[1:])
    return None, list(words)


def read_request(
    sweep: Path | None,
    overrides: Sequence[str],
    name: str | None,
    results: Path | str,
    resume: bool = False,
    warm_start: Path | None = None,
    ablation: bool = False,
) -> "SweepRequest":
    """What somebody asks for, with its settings read and checked.

    Args:
        sweep: the file; None means the default sweep, or with `resume` the file in the results folder.
        overrides: `key=value` changes to the file.
        name: of the sweep; None means the file's name.
        results: folder of all sweeps; or the address of one in a store, to which RESULTS is copied, and from where it is fetched.
        resume: whether to go on with a sweep.
        warm_start: results folder of a sweep whose trials the sampler is told.
        ablation: whether the file is the plan of an ablation.

    Raises:
        ConfigError: naming what is wrong.
    """
    store, results = (results, RESULTS) if isinstance(results, str) else (None, results)
    folder = results / name_of(sweep or DEFAULT_SWEEP, name, longest_name(results))
    if resume and warm_start:
        raise ConfigError("command line: --resume goes on with a sweep, --warm-start begins one; allowed: one of them")
    copy = store_of(store, folder, resume) if store else None
    if resume and sweep is None:
        sweep = folder / "sweep.yaml"
        if not os.path.isfile(sweep):
            raise ConfigError(f"{folder} holds no sweep that could go on; leave --resume out to begin one")
    config, origin = read_sweep_with_origin(sweep or DEFAULT_SWEEP, overrides)
    if ablation != bool(config.ablation):
        state, verb = ("missing", "sweep") if ablation else ("there", "ablate")
        raise ConfigError(
            f"{origin.file}: the section `ablation` is {state}; allowed: "
            f"{shown_command(f'orchestrator.{verb}', shlex.quote(origin.file))}"
        )
    from orchestrator.run.prepare import SweepRequest  # loads numpy, which a wrong setting does not need

    return SweepRequest(config, origin, folder, resume, warm_start, store=copy)


def store_of(results: str, folder: Path, resume: bool) -> "ResultsStore":
    """Where a sweep is copied to. One that goes on gets what the store has and `folder` has not.

    Raises:
        ConfigError: when the store cannot be reached, or holds another sweep than the folder.
    """
    from orchestrator.copy.fetch import fetch
    from orchestrator.copy.results_store import ResultsStore

    try:
        refuse_secret("command line: --results", results)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    store = ResultsStore(results).inside(folder.name)
    if resume:
        fetch(store, folder, lambda text: print(text, file=sys.stderr))
    return store


def name_of(sweep: Path, name: str | None, longest: int) -> str:
    """The name of a sweep: `name`, or that of its file; at most `longest` letters.

    Raises:
        ConfigError: when it is no name of a sweep.
    """
    wanted = sweep.stem if name is None else name
    if len(wanted) > longest:
        given = f"{sweep}: the name of the file, and so of the sweep," if name is None else "command line: --name"
        raise ConfigError(f"{given} has {len(wanted)} letters; allowed: at most {longest}, as for every folder here (--name)")
    if re.fullmatch(NAME, wanted):
        return wanted
    if name is None:
        cure = re.sub(r"[^A-Za-z0-9._-]+", "_", wanted).strip("._-") or "sweep"
        raise ConfigError(
            f"{sweep}: the name of the file, {wanted!r}, would be the name of the sweep, which may have {NAME_IN_WORDS}; give it "
            f"another: --name {cure}"
        )
    raise ConfigError(f"command line: --name is {name!r}; allowed: {NAME_IN_WORDS}")


def longest_name(results: Path) -> int:
    """The number of bytes that a folder's name may have in `results`, or where that would be created."""
    existing = next(place for place in (results.absolute(), *results.absolute().parents) if os.path.exists(place))
    try:
        return os.pathconf(existing, "PC_NAME_MAX")
    except OSError:  # the file system does not say
        return 255


def read_place(address: str | None, file: Path | None) -> "Cluster | None":
    """The cluster on which trials run; None means on this machine.

    Raises:
        ConfigError: when the file cannot be used.
    """
    if address is None:
        if file is not None:
            raise ConfigError(
                f"command line: --cluster is {file}, but --address is missing; allowed: --address auto on the cluster's head"
            )
        return None
    if "://" in address:
        raise ConfigError(
            f"command line: --address is {address}; allowed: auto, or HOST:PORT; from a laptop use `ray job submit`"
        )
    from orchestrator.cluster.cluster_file import LOCAL, Cluster, read_cluster

    own = Path("~/ray_bootstrap_config.yaml").expanduser()
    file = file or (own if own.is_file() else None)
    found = read_cluster(file) if file else None
    return Cluster(address, None if found and found.provider == LOCAL else found)  # its machines are up, and say what they have


def launches_cluster(given: argparse.Namespace) -> tuple[bool, Path | str]:
    """Whether the command starts a cluster of its own, and the folder of all results on this machine. The options that others
    read are made to fit: a dry run is one on the cluster.

    Raises:
        ConfigError: when --down is given without a cluster that would be started.
    """
    starts = given.cluster is not None and given.address is None
    if given.down and not starts:
        raise ConfigError(
            f"command line: --down is {given.down}, but no cluster is started; allowed: --cluster FILE without --address"
        )
    if starts and given.dry_run:
        given.address = "auto"
    launches = starts and not given.dry_run
    # What goes to a store is brought there by the head: this machine need not reach the store.
    return launches, RESULTS if launches and isinstance(given.results, str) else given.results


def launch_cluster(given: argparse.Namespace, request: "SweepRequest", verb: str, arguments: Sequence[str]) -> int:
    """Starts the cluster and runs the sweep on it. Returns the exit code.

    Args:
        given: the options.
        request: what is to run; its file is brought to the head.
        verb: `sweep` or `ablate`.
        arguments: the whole command line, for the command that follows the sweep again.
    """
    from orchestrator.cluster.cluster_file import read_cluster
    from orchestrator.cluster.launch import launch
    from orchestrator.cluster.launch_checks import Down, Launch

    return launch(
        Launch(
            verb=verb,
            name=request.folder.name,
            file=Path(request.origin.file),
            overrides=given.overrides,
            config=request.config,
            cluster=read_cluster(given.cluster),
            results=request.folder,
            store=given.results if isinstance(given.results, str) else None,
            resume=given.resume,
            warm_start=request.warm_start,
            down=Down(given.down or Down.NEVER),
            again=shown_command(f"orchestrator.{verb}", shlex.join(resuming(arguments))),
        )
    )


def resuming(arguments: Sequence[str]) -> list[str]:
    """The command line that goes on with a sweep, from the one that began it."""
    kept, earlier = [], ""
    for word in arguments:
        value = earlier.startswith("--w") and "=" not in earlier
        if not word.startswith("--w") and not value:  # --warm-start is for what begins
            kept.append(word)
        earlier = word
    return kept if "--resume" in kept else [*kept, "--resume"]
