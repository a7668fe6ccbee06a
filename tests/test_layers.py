"""The map of docs/architecture.md, drawn from the code: imports point one way, and each library has its door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for room in ("orchestrator", "trainables") for path in (ROOT / room).rglob("*.py"))

LAYERS = [
    [
        "trainables.settings",
        "trainables.registry",
        "trainables.seeds",
        "trainables.words",
        "trainables.collapse",
        "trainables.files",
        "trainables.command_line",
        "trainables.machine",
        "trainables.program",
        "trainables.best_epoch",
        "trainables.collectives",
        "trainables.stacks",
        "trainables.alive",
    ],
    ["trainables.workers.commands"],
    ["trainables.shown_commands", "trainables.stores"],
    ["trainables.config_file", "trainables.parsers"],
    ["trainables.model_folder"],
    ["trainables.data_config", "trainables.optim_config", "trainables.loss_config"],
    ["trainables.classifier_config", "trainables.method_config"],
    ["trainables.stage_config"],
    ["trainables.config"],
    ["trainables.fusion"],
    ["trainables.data", "trainables.checkpoint"],
    ["trainables.models", "trainables.methods"],
    ["trainables.plugins"],
    [
        "trainables.engine.batch_norm",
        "trainables.engine.draws",
        "trainables.engine.frozen_norms",
        "trainables.engine.health",
        "trainables.engine.numerics",
        "trainables.engine.optimizers",
        "trainables.engine.stacked_optimizers",
        "trainables.engine.step_timer",
        "trainables.engine.weights",
    ],
    ["trainables.evaluate", "trainables.engine.linearize"],
    ["trainables.engine.parts"],
    ["trainables.engine.sharded"],
    ["trainables.engine.meta_gradient"],
    ["trainables.engine.averaged", "trainables.engine.bilevel", "trainables.engine.stacked_classifiers"],
    ["trainables.engine.cuda_graph", "trainables.engine.fused_step"],
    ["trainables.stage", "trainables.traced_backbone", "trainables.trained", "trainables.pairing"],
    ["trainables.frozen"],
    ["trainables.trial_run", "trainables.export_model"],
    ["trainables.fused_run"],
    ["trainables.side_by_side"],
    ["trainables.inference", "trainables.suspects", "trainables.extraction"],
    ["trainables.export_program", "trainables.tailtune_model"],
    ["trainables.train", "trainables.features", "trainables.to_parquet", "trainables.predict", "trainables.workers.worker"],
    ["trainables.workers.worker_group"],
    [
        "orchestrator.statistics.seeds",
        "orchestrator.statistics.greedy_path",
        "orchestrator.statistics.proportions",
        "orchestrator.statistics.t_interval",
    ],
    ["orchestrator.statistics.paired"],
    [
        "orchestrator.config.resources_config",
        "orchestrator.config.scheduler_config",
        "orchestrator.config.limits_config",
        "orchestrator.config.checkpoint_config",
        "orchestrator.config.constraints",
        "orchestrator.config.ablation_config",
    ],
    ["orchestrator.config.search_config"],
    ["orchestrator.config.space"],
    ["orchestrator.config.arms", "orchestrator.config.combinations"],
    ["orchestrator.config.sweep_config"],
    ["orchestrator.config.reference"],
    ["orchestrator.ledger.events"],
    [
        "orchestrator.ledger.head",
        "orchestrator.ledger.paths",
        "orchestrator.ledger.whole",
        "orchestrator.ledger.stored",
        "orchestrator.ledger.parquet_files",
    ],
    ["orchestrator.ledger.ledger"],
    [
        "orchestrator.ledger.trial_states",
        "orchestrator.ledger.class_arrays",
        "orchestrator.ledger.last_attempts",
        "orchestrator.ledger.usage",
    ],
    ["orchestrator.ledger.epoch_report"],
    ["orchestrator.copy.results_store"],
    ["orchestrator.copy.copier", "orchestrator.copy.fetch"],
    [
        "orchestrator.decide.fresh_seeds",
        "orchestrator.decide.further_seeds",
        "orchestrator.decide.schedulers",
        "orchestrator.decide.study",
        "orchestrator.decide.retention",
    ],
    ["orchestrator.decide.path_steps"],
    ["orchestrator.decide.proposals"],
    ["orchestrator.decide.conductor"],
    ["orchestrator.decide.warm_start", "orchestrator.decide.virtual_sweep", "orchestrator.decide.importance"],
    ["orchestrator.decide.plots"],
    ["orchestrator.outcome.stats", "orchestrator.outcome.own_digest"],
    ["orchestrator.outcome.confirmation"],
    ["orchestrator.outcome.tables"],
    ["orchestrator.outcome.differences"],
    ["orchestrator.outcome.answer", "orchestrator.outcome.leaderboard"],
    [
        "orchestrator.outcome.card",
        "orchestrator.outcome.choice",
        "orchestrator.outcome.provenance",
        "orchestrator.outcome.arm_results",
        "orchestrator.outcome.ablation",
        "orchestrator.outcome.parts",
        "orchestrator.outcome.repeat",
        "orchestrator.outcome.searches",
    ],
    ["orchestrator.outcome.forest"],
    ["orchestrator.outcome.ablation_files"],
    ["orchestrator.outcome.bundle"],
    ["orchestrator.outcome.suspect_files"],
    ["orchestrator.outcome.best", "orchestrator.outcome.checks"],
    ["orchestrator.tracking.catch_up", "orchestrator.tracking.page", "orchestrator.tracking.server"],
    ["orchestrator.tracking.local_store", "orchestrator.tracking.registry"],
    ["orchestrator.tracking.outcome"],
    ["orchestrator.tracking.mlflow_runs"],
    ["orchestrator.tracking.tracker"],
    ["orchestrator.tracking.reachable"],
    ["orchestrator.report.colours", "orchestrator.report.drawing", "orchestrator.report.reading", "orchestrator.report.timeline"],
    ["orchestrator.report.close_trials", "orchestrator.report.sentences"],
    ["orchestrator.report.material", "orchestrator.report.trial_table"],
    ["orchestrator.report.search_figures", "orchestrator.report.class_figures", "orchestrator.report.run_figures"],
    ["orchestrator.report.confusion"],
    ["orchestrator.report.figures", "orchestrator.report.paper_figures"],
    ["orchestrator.report.html_page"],
    ["orchestrator.report.writing"],
    ["orchestrator.report.watching", "orchestrator.report.checking"],
    ["orchestrator.report"],
    ["orchestrator.cluster.placement"],
    ["orchestrator.cluster.cluster_file", "orchestrator.cluster.autoscaler"],
    ["orchestrator.cluster.machines"],
    ["orchestrator.cluster.cluster_checks", "orchestrator.cluster.head"],
    ["orchestrator.cluster.launch_checks"],
    ["orchestrator.cluster.launch"],
    ["orchestrator.run.signals", "orchestrator.run.leftovers", "orchestrator.run.disk"],
    ["orchestrator.run.member"],
    [
        "orchestrator.run.preflight",
        "orchestrator.run.trial",
        "orchestrator.run.interrupts",
        "orchestrator.run.facts",
        "orchestrator.run.connection",
        "orchestrator.run.groups",
    ],
    ["orchestrator.run.again", "orchestrator.run.prepare", "orchestrator.run.strangers"],
    ["orchestrator.run.machine_watch"],
    ["orchestrator.run.supervisor"],
    ["orchestrator.run.tune_hooks", "orchestrator.run.remote_call"],
    ["orchestrator.run.probe", "orchestrator.run.sealed_test", "orchestrator.run.estimate"],
    ["orchestrator.run.runner"],
    ["orchestrator.run.session"],
    ["orchestrator.run.searches"],
    ["orchestrator.terminal.lines", "orchestrator.terminal.display"],
    ["orchestrator.terminal.ablation", "orchestrator.terminal.importance"],
    ["orchestrator.terminal.progress", "orchestrator.terminal.plan", "orchestrator.terminal.summary"],
    ["orchestrator.parsers"],
    ["orchestrator.request", "orchestrator.quick", "orchestrator.finding"],
    ["orchestrator.doctor_images"],
    [
        "orchestrator.sweep",
        "orchestrator.export",
        "orchestrator.doctor",
        "orchestrator.ui",
        "orchestrator.sync",
        "orchestrator.suspects",
    ],
    ["orchestrator.rerun", "orchestrator.verify", "orchestrator.settings", "orchestrator.completion"],
    ["orchestrator.ablate"],
    ["orchestrator.resume"],
    ["orchestrator.__main__"],
    ["orchestrator.api"],
]
INNER = {
    "trainables.data": {
        "augment",
        "autoaugment",
        "cache",
        "cifar",
        "clothing1m",
        "decode",
        "device_decode",
        "digits",
        "generated",
        "handover",
        "image_folder",
        "shards",
        "image_lists",
        "large_augment",
        "memory",
        "noise",
        "operations",
        "packed",
        "parquet",
        "shrunk",
        "splits",
        "staging",
        "stream",
        "unreadable",
    },
    "trainables.models": {
        "feature_heads",
        "global_average_pool",
        "heads",
        "hub",
        "pretrained",
        "resnet",
        "resnet_cifar",
        "resnet_cifar18",
        "small_cnn",
    },
    "trainables.methods": {
        "advisor",
        "difficulty_net",
        "loss_alone",
        "losses",
        "meta_sampler",
        "meta_weight_net",
        "outputs",
        "perturbed",
        "weighted",
    },
    "trainables.engine": {"batch_norm"},
    "trainables.workers": {"commands", "worker"},
    "orchestrator.config": {"combinations", "constraints", "resources_config"},
    "orchestrator.ledger": {"stored"},
    "orchestrator.decide": {"fresh_seeds", "further_seeds", "proposals", "study"},
    "orchestrator.outcome": {"card", "provenance"},
    "orchestrator.run": {
        "facts",
        "member",
        "probe",
        "remote_call",
        "runner",
        "sealed_test",
        "signals",
        "strangers",
        "supervisor",
        "tune_hooks",
    },
    "orchestrator.tracking": {"catch_up", "mlflow_runs", "outcome", "page", "registry"},
    "orchestrator.report": {
        "class_figures",
        "close_trials",
        "colours",
        "drawing",
        "figures",
        "html_page",
        "material",
        "paper_figures",
        "reading",
        "run_figures",
        "search_figures",
        "sentences",
        "timeline",
        "trial_table",
        "watching",
    },
}
"""The helpers of each room: other rooms come in by the room's other files, its doors."""
DOORS = {
    "optuna": {"orchestrator.decide.importance", "orchestrator.decide.plots", "orchestrator.decide.study"},
    "mlflow": {"orchestrator.tracking.mlflow_runs", "orchestrator.tracking.registry"},
    "ray": {
        "orchestrator.cluster.autoscaler",
        "orchestrator.cluster.machines",
        "orchestrator.run.connection",
        "orchestrator.run.remote_call",
        "orchestrator.run.runner",
        "orchestrator.run.tune_hooks",
        "orchestrator.run.trial",
        "trainables.workers.worker_group",
    },
    "ray.train": {"trainables.workers.worker_group"},
    "statsmodels": {"orchestrator.statistics.paired"},
    "matplotlib": {"orchestrator.outcome.forest", "orchestrator.report.paper_figures"},
    "plotly": {
        f"orchestrator.report.{name}"
        for name in ("class_figures", "confusion", "drawing", "html_page", "run_figures", "search_figures")
    },
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def layer_of(module: str) -> int | None:
    """The layer of a module or of the nearest package around it."""
    while module:
        for number, layer in enumerate(LAYERS):
            if module in layer:
                return number
        module = module.rpartition(".")[0]
    return None


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_one_way(path: Path) -> None:
    module = module_of(path)
    if not path.read_text().strip() or module in ("orchestrator", "trainables"):
        return  # an empty `__init__.py`, and the doors for Python, which lead to upper layers
    own = layer_of(module)
    assert own is not None, f"{module} has no place in the map"
    for imported in imports_of(path):
        if (
            imported.startswith(("orchestrator", "trainables"))
            and not module.startswith(imported)
            and not imported.startswith(module)
        ):
            inner = imported.split(".")[:2] == module.split(".")[:2]
            assert inner or layer_of(imported) < own, f"{module} imports {imported}, which lies above it or beside it"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_room_is_entered_by_its_doors(path: Path) -> None:
    module = module_of(path)
    inner = {f"{room}.{name}" for room, names in INNER.items() if not module.startswith(room) for name in names}
    assert not imports_of(path) & inner, "this file reaches into another room"
    private = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("orchestrator", "trainables"))
        for alias in node.names
        if alias.name.startswith("_")
    ]
    assert not private, "a name with an underscore belongs to its file"


def test_the_rooms_have_the_helpers_that_are_listed() -> None:
    modules = {module_of(path) for path in FILES}
    assert not [f"{room}.{name}" for room, names in INNER.items() for name in names if f"{room}.{name}" not in modules]


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_its_door(library: str) -> None:
    users = {module_of(path) for path in FILES if any(f"{name}.".startswith(f"{library}.") for name in imports_of(path))}
    assert users == DOORS[library]


def test_torch_stays_in_trainables_and_out_of_what_is_read_before_a_start() -> None:
    users = {module_of(path) for path in FILES if any(name.split(".")[0] == "torch" for name in imports_of(path))}
    assert {user for user in users if user.startswith("orchestrator")} == {"orchestrator.doctor"}  # it looks whether torch works
    assert {user for user in users if user.startswith("trainables.data")} == {
        f"trainables.data.{name}"
        for name in (
            *(
                "augment",
                "autoaugment",
                "device_decode",
                "features",
                "image_files",
                "kept",
                "large_augment",
                "loaded",
                "loader",
                "memory",
                "mix",
            ),
            *("handover", "operations", "stream"),
        )
    }
    assert not users & {"trainables.settings", "trainables.config", "trainables.config_file", "trainables.registry"}


def test_the_map_of_the_docs_names_every_file() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {"data", "models", "methods"}
    missing = [
        path.name for path in FILES if path.name != "__init__.py" and path.parent.name not in rooms and path.name not in text
    ]
    assert not missing
