"""The command lines of all verbs, by name. Pure Python, so that `--help` comes at once."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import trainables.parsers
from trainables.command_line import CommandLine, add_json, typed_path
from trainables.shown_commands import program, shipped, typed_file
from trainables.stores import is_store

RESULTS = Path("results")
"""The folder of all results, unless another one is named."""
A_FOLDER = "The results folder of a sweep or an ablation."


def sweep() -> CommandLine:
    """Of `sweep`."""
    parser = CommandLine(
        program("orchestrator.sweep"),
        "Runs a sweep: many trials over a space, tracked, compared, and the best one exported.",
        [
            "digits_lt search.trials=8",
            "own_images trial.data.root=pets --quick",
            "my_sweep.yaml --name second_try --dry-run",
            "--name digits_lt --resume",
        ],
    )
    _add_words(parser, "SWEEP.yaml", "The sweep's file or the name of a shipped sweep, then settings to change.")
    _add_options(parser, "sweep", more="trials")
    parser.add_argument(
        "--warm-start", type=typed_path, metavar="OLD", help="The results folder of a sweep whose trials the sampler is told."
    )
    parser.add_argument(
        "--quick", action="store_true", help="Make a small first try of a few minutes, in a results folder of its own."
    )
    return parser


def ablate() -> CommandLine:
    """Of `ablate`."""
    plans = ", ".join(name for name in shipped() if name.startswith("ablation_"))
    parser = CommandLine(
        program("orchestrator.ablate"),
        "Runs an ablation: variants of one trial, each trained on the same seeds, compared with honest statistics.",
        ["ablation_table4", "my_plan.yaml ablation.seeds=10", "--from-sweep results/digits_lt --path"],
        more=f"Shipped plans: {plans}.",
    )
    _add_words(parser, "PLAN.yaml", "The plan's file or the name of a shipped plan, then settings to change.")
    _add_options(parser, "ablation", more="seeds")
    parser.add_argument(
        "--from-sweep",
        type=typed_path,
        metavar="RESULTS/NAME",
        help="In place of a plan: set each searched setting of the sweep's best trial back to its default in turn.",
    )
    parser.add_argument(
        "--path",
        action="store_true",
        help="With --from-sweep: go from the defaults to the best trial instead, each step with the setting that gains most.",
    )
    return parser


def resume() -> CommandLine:
    """Of `resume`."""
    parser = CommandLine(
        program("orchestrator.resume"),
        "Goes on with a sweep or an ablation that was interrupted or killed.",
        ["", "digits_lt", "results/digits_lt search.trials=40"],
        more="All options of sweep and ablate may follow. Without a name, what can go on is listed.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME | FOLDER", help="The name of the sweep, or its results folder.")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="Settings to change, and options of the sweep.")
    return parser


def export() -> CommandLine:
    """Of `export`."""
    parser = CommandLine(
        program("orchestrator.export"),
        "Exports the best trial of a sweep: configuration, model, card, metrics, provenance.",
        ["results/digits_lt --out best_model", "results/digits_lt --top 3", "results/digits_lt --trial t0007 --onnx"],
    )
    parser.add_argument("folder", type=typed_path, help="The results folder of a sweep.")
    parser.add_argument("--out", type=typed_path, help="Where to write. Default: FOLDER/best.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--top", type=int, metavar="K", help="Export the K best configurations, to FOLDER/best_1 ... or OUT/1 ...")
    which.add_argument("--pareto", action="store_true", help="Export all trials of the Pareto front of search.objectives.")
    which.add_argument("--trial", metavar="T", help="Export a certain trial, as t0007, to FOLDER/export_T.")
    parser.add_argument(
        "--read-test", action="store_true", help="Read the test set for every exported trial, not for the best one alone."
    )
    parser.add_argument("--onnx", action="store_true", help="Write the model as model.onnx, too; this needs the extra onnx.")
    add_json(parser)
    return parser


def report() -> CommandLine:
    """Of `report`."""
    parser = CommandLine(
        program("orchestrator.report"),
        "Writes a page of pictures about a sweep or an ablation, and figures for papers.",
        ["results/digits_lt --open", "results/digits_lt --watch", "results/digits_lt --trial t0007 --leaderboard"],
    )
    parser.add_argument("folder", type=typed_path, help=A_FOLDER)
    parser.add_argument("--watch", action="store_true", help="Write it again while the sweep runs; the page follows.")
    parser.add_argument("--open", action="store_true", help="Open it in a browser.")
    parser.add_argument(
        "--trial",
        action="append",
        default=[],
        metavar="T",
        help="Show this trial class by class, too, as t0007; the option may be repeated.",
    )
    parser.add_argument(
        "--leaderboard",
        action="store_true",
        help="Also write leaderboard.json and .md, from readings of the sealed test set alone.",
    )
    add_json(parser)
    return parser


def suspects() -> CommandLine:
    """Of `suspects`."""
    parser = CommandLine(
        program("orchestrator.suspects"),
        "Lists the training images whose labels look wrong, and shows the first hundred on one page.",
        ["results/pets", "results/pets --folds 5"],
    )
    parser.add_argument("folder", type=typed_path, help="The results folder of a sweep whose best trial was exported.")
    parser.add_argument(
        "--folds",
        type=int,
        metavar="K",
        help="Train the best configuration K times, and judge each image by a model that has not seen it.",
    )
    parser.add_argument("--out", type=typed_path, help="Where to write. Default: FOLDER/suspects, or FOLDER/suspects_K_folds.")
    add_json(parser)
    return parser


def rerun() -> CommandLine:
    """Of `rerun`."""
    parser = CommandLine(
        program("orchestrator.rerun"),
        "Trains a trial of a sweep again from its ledger, and says whether the numbers are the same.",
        ["results/digits_lt t0007", "results/digits_lt t0007 --export"],
    )
    parser.add_argument("folder", type=typed_path, help=A_FOLDER)
    parser.add_argument("trial", metavar="TRIAL", help="The trial, as t0007.")
    parser.add_argument("--export", action="store_true", help="Export the model, if the numbers are the same.")
    parser.add_argument("--out", type=typed_path, help="Where to export to. Default: FOLDER/export_TRIAL.")
    add_json(parser)
    return parser


def verify() -> CommandLine:
    """Of `verify`."""
    parser = CommandLine(
        program("orchestrator.verify"),
        "Recomputes the digests, tables and numbers of a results folder or an export, and names what does not match.",
        ["results/digits_lt", "results/digits_lt/best"],
    )
    parser.add_argument("folder", type=typed_path, help="The results folder of a sweep or an ablation, or an exported folder.")
    add_json(parser)
    return parser


def doctor() -> CommandLine:
    """Of `doctor`."""
    parser = CommandLine(
        program("orchestrator.doctor"),
        "Checks this machine, the images of a sweep and a cluster's file, and gives the cure for each problem.",
        ["", "own_images trial.data.root=pets", "own_images trial.data.root=pets --write-skip-list skip.txt"],
    )
    parser.add_argument("--results", type=typed_path, default=RESULTS, help="The folder of all results. Default: results.")
    parser.add_argument("sweep", nargs="?", type=typed_file, metavar="SWEEP.yaml", help="Also look at every image of this sweep.")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Settings of the sweep to change.")
    parser.add_argument("--cluster", type=typed_path, metavar="CLUSTER.yaml", help="Also look at this file of a cluster.")
    parser.add_argument(
        "--write-skip-list",
        type=typed_path,
        metavar="FILE",
        help="Write the names of images that had better be left out, for trial.data.skip: unreadable ones and copies.",
    )
    add_json(parser)
    return parser


def ui() -> CommandLine:
    """Of `ui`."""
    parser = CommandLine(
        program("orchestrator.ui"),
        "Shows trials in MLflow's web interface, and names the page of a sweep.",
        ["", "results/digits_lt --port 5050"],
    )
    parser.add_argument(
        "folder",
        type=typed_path,
        nargs="?",
        default=RESULTS,
        help="The folder of all results, or of one sweep. Default: results.",
    )
    parser.add_argument("--port", type=int, default=5000, help="The port of the interface, on this machine alone. Default: 5000.")
    return parser


def sync() -> CommandLine:
    """Of `sync`."""
    parser = CommandLine(
        program("orchestrator.sync"),
        "Sends a sweep to MLflow again, as far as MLflow lacks it.",
        ["results/digits_lt", "results/digits_lt tracking.uri=http://127.0.0.1:5000"],
    )
    parser.add_argument("folder", type=typed_path, help=A_FOLDER)
    parser.add_argument(
        "overrides", nargs="*", metavar="tracking.KEY=VALUE", help="Where to send it, if not as its sweep.yaml says."
    )
    return parser


def settings() -> CommandLine:
    """Of `settings`."""
    parser = CommandLine(
        program("orchestrator.settings"),
        "Prints every setting with its type, default, allowed values and meaning.",
        ["", "trial.data", "search.confirm"],
    )
    parser.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="Print the settings that begin so. Default: all.")
    return parser


def completion() -> CommandLine:
    """Of `completion`."""
    parser = CommandLine(
        program("orchestrator.completion"),
        "Prints a script that lets a shell complete verbs, options, shipped sweeps and settings.",
        ["bash > ~/.tailtune.bash && source ~/.tailtune.bash", "zsh > ~/.tailtune.zsh", "fish | source"],
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="The shell.")
    return parser


class Verb(NamedTuple):
    """What one can do."""

    module: str
    """Its `main` takes the words after the verb and returns the exit code."""
    parser: Callable[[], CommandLine]


VERBS = {
    "sweep": Verb("orchestrator.sweep", sweep),
    "ablate": Verb("orchestrator.ablate", ablate),
    "resume": Verb("orchestrator.resume", resume),
    "doctor": Verb("orchestrator.doctor", doctor),
    "report": Verb("orchestrator.report.__main__", report),
    "export": Verb("orchestrator.export", export),
    "suspects": Verb("orchestrator.suspects", suspects),
    "predict": Verb("trainables.predict", trainables.parsers.predict),
    "train": Verb("trainables.train", trainables.parsers.train),
    "rerun": Verb("orchestrator.rerun", rerun),
    "verify": Verb("orchestrator.verify", verify),
    "ui": Verb("orchestrator.ui", ui),
    "sync": Verb("orchestrator.sync", sync),
    "features": Verb("trainables.features", trainables.parsers.features),
    "to-parquet": Verb("trainables.to_parquet", trainables.parsers.to_parquet),
    "settings": Verb("orchestrator.settings", settings),
    "completion": Verb("orchestrator.completion", completion),
}


def _add_words(parser: CommandLine, file: str, text: str) -> None:
    parser.add_argument("words", nargs="*", metavar=f"{file} | key=value", help=text)


def _add_options(parser: CommandLine, what: str, more: str) -> None:
    """Adds the options that sweeps and ablations share: names and folders, going on, and where trials run.

    Args:
        parser: of the command line.
        what: a sweep or an ablation, in a word.
        more: what a resumption may have more of.
    """
    parser.add_argument("--name", help=f"The name of the {what} and of its results folder. Default: the file's name.")
    parser.add_argument(
        "--results",
        type=typed_results,
        default=RESULTS,
        metavar="DIR | ADDRESS",
        help="The folder of all results. Default: results. To an address, as s3://bucket/folder, they are copied on the way.",
    )
    add_json(parser)
    parser.add_argument("--dry-run", action="store_true", help="Show the plan and the estimated time, and start nothing.")
    parser.add_argument(
        "--resume",
        action="store_true",
        help=f"Go on with what was interrupted or killed, or with more {more} or another budget; the file may be left out.",
    )
    parser.add_argument(
        "--address",
        metavar="auto | HOST:PORT",
        help="Run the trials on this running Ray cluster; auto is the cluster of this machine. Default: on this machine.",
    )
    parser.add_argument(
        "--cluster",
        type=typed_path,
        metavar="CLUSTER.yaml",
        help=f"Start this cluster, run the {what} on it and fetch the results. With --address: the file of the running cluster, "
        "which says how many machines may come. Default: ~/ray_bootstrap_config.yaml, which `ray up` puts on the head.",
    )
    parser.add_argument(
        "--down",
        choices=("always", "success", "never"),
        help=f"With --cluster: when the cluster is ended after the {what}, once the results are here. Default: never.",
    )


def typed_results(text: str) -> Path | str:
    """The folder of all results as somebody typed it, or the address of one in a store."""
    return text if is_store(text) else typed_path(text)
