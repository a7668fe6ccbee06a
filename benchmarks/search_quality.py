"""Measures whether a search learns: its final regret beside that of random search under the same scheduler, in virtual sweeps.

    python -m benchmarks.search_quality [--seeds 20] [--trials 60] [--samplers tpe,gp,...] [--schedulers asha,...] [--json]
    python -m benchmarks.search_quality --waves [--seeds 8] [--trials 60] [--json]

The objective has a known optimum: the accuracy that a trial reaches at its last epoch falls with the distance of four searched
settings from their best values. Learning curves rise towards it. In the rows `diverging`, trials with the upper half of beta
diverge. Regret is the difference between the optimum and the accuracy of the trial that the sweep would export. A ratio is the
median regret over seeds, divided by that of random search on the same seeds: below 1 the search learns.

`--waves` measures what deterministic sweeps cost (TPE and ASHA): wall time beside decisions as results arrive, the share of the
slots' time spent waiting, and regret, for waves of 1, 2 and 4 times the slots.
"""

import argparse
import hashlib
import json
import math
import statistics
from typing import Any

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.virtual_sweep import Virtual, run
from orchestrator.ledger.events import Status
from trainables.config_file import Origin, check
from trainables.settings import flatten

EPOCHS = 27
SLOTS = 4
SAMPLERS = ("random", "tpe", "gp", "cmaes", "nsga2")
SCHEDULERS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "asha": {"name": "asha", "grace_epochs": 3},
    "promotion": {"name": "promotion", "grace_epochs": 3},
    "hyperband": {"name": "hyperband", "grace_epochs": 3},
    "median": {"name": "median", "grace_epochs": 3},
}
SPACE: dict[str, Any] = {
    "optim.lr": {"type": "float", "low": 1e-3, "high": 1.0, "log": True},
    "method.meta_lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
    "method.driver_weight": {"type": "float", "low": 1e-3, "high": 1.0, "log": True},
    "method.hidden_width": {"type": "int", "low": 4, "high": 256, "log": True},
}
BEST = {"optim.lr": 0.35, "method.meta_lr": 0.3, "method.driver_weight": 0.7, "method.hidden_width": 0.6}
"""Where the optimum lies on each parameter's scale, from 0 (low) to 1 (high)."""
WEIGHTS = {"optim.lr": 0.8, "method.meta_lr": 0.6, "method.driver_weight": 0.3, "method.hidden_width": 0.1}
OPTIMUM = 0.9


def place(name: str, value: float) -> float:
    """Where a value lies on its parameter's scale, from 0 to 1."""
    low, high = math.log(SPACE[name]["low"]), math.log(SPACE[name]["high"])
    return (math.log(value) - low) / (high - low)


def quality(settings: dict[str, Any]) -> float:
    """The accuracy that a trial reaches in the end, without noise."""
    loss = sum(WEIGHTS[name] * (place(name, settings[name]) - BEST[name]) ** 2 for name in SPACE)
    return max(0.05, OPTIMUM - loss)


def curve(settings: dict[str, Any], epoch: int) -> float:
    """The accuracy in an epoch: rises to `quality`, faster with a larger step size, with a little noise that a hash draws."""
    speed = 4 - place("optim.lr", settings["optim.lr"])
    key = json.dumps([[settings[name] for name in SPACE], settings["seed"], epoch])
    noise = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 2**32 - 0.5
    return round(quality(settings) * (1 - math.exp(-epoch / speed)) + 0.01 * noise, 6)


def diverging(settings: dict[str, Any], epoch: int) -> float | None:
    """The same, but the upper half of beta diverges in the second epoch."""
    return None if epoch == 2 and place("method.meta_lr", settings["method.meta_lr"]) > 0.5 else curve(settings, epoch)


def regret(sampler: str, scheduler: str, seed: int, trials: int, diverges: bool = False) -> tuple[float, float]:
    """The final regret of one sweep, and the share of its later half that diverged."""
    tree = {
        "trial": {"epochs": EPOCHS},
        "space": SPACE,
        "search": {"trials": trials, "sampler": sampler, "seed": seed},
        "scheduler": SCHEDULERS[scheduler],
        "resources": {"max_concurrent": SLOTS},
    }
    done = run(sweep_of(tree), diverging if diverges else curve, SLOTS, seed)
    late = list(done.conductor.trials.values())[trials // 2 :]
    return regret_of(done), sum(trial.status == Status.DIVERGED for trial in late) / len(late)


def regret_of(done: Virtual) -> float:
    """How far the trial that a sweep would export is from the optimum."""
    finished = [trial for trial in done.conductor.trials.values() if trial.status == Status.FINISHED]
    best = max(finished, key=lambda trial: trial.best_value or 0.0)
    return OPTIMUM - quality(flatten(best.config))


def sweep_of(tree: dict[str, Any]) -> SweepConfig:
    """Checked settings of a sweep."""
    return check(SweepConfig, tree, Origin("virtual sweep"))


def measure(samplers: list[str], schedulers: list[str], seeds: int, trials: int) -> dict[str, float]:
    """All ratios, by `<sampler>_<scheduler>_over_random`."""
    found: dict[str, float] = {}
    for scheduler in schedulers:
        base = statistics.median(regret("random", scheduler, seed, trials)[0] for seed in range(seeds))
        found[f"random_{scheduler}_regret"] = base
        for sampler in samplers:
            if sampler != "random":
                regrets = [regret(sampler, scheduler, seed, trials)[0] for seed in range(seeds)]
                found[f"{sampler}_{scheduler}_over_random"] = statistics.median(regrets) / base
                print(f"{sampler:<7} {scheduler:<10} {found[f'{sampler}_{scheduler}_over_random']:.2f}", flush=True)
    base = statistics.median(regret("random", "asha", seed, trials, diverges=True)[0] for seed in range(seeds))
    for sampler in samplers:
        both = [regret(sampler, "asha", seed, trials, diverges=True) for seed in range(seeds)]
        found[f"{sampler}_diverging_over_random"] = statistics.median(r for r, _ in both) / base
        found[f"{sampler}_diverging_share"] = statistics.fmean(share for _, share in both)
        ratio, share = found[f"{sampler}_diverging_over_random"], found[f"{sampler}_diverging_share"]
        print(f"{sampler:<7} diverging  {ratio:.2f}, {share:.0%} of the later half diverge", flush=True)
    return found


def waves(slots: int, width: int | None, seeds: int, trials: int) -> tuple[float, float, float]:
    """Mean wall time, mean idle share and median regret with waves of `width` trials; None decides as results arrive."""
    tree = {
        "trial": {"epochs": EPOCHS},
        "space": SPACE,
        "search": {"trials": trials, "sampler": "tpe", "deterministic": width is not None, "wave": width},
        "scheduler": SCHEDULERS["asha"],
        "resources": {"max_concurrent": slots},
    }
    done = [run(sweep_of(merged(tree, seed)), curve, slots, seed) for seed in range(seeds)]
    regrets = [regret_of(one) for one in done]
    return statistics.fmean(one.wall for one in done), statistics.fmean(one.idle for one in done), statistics.median(regrets)


def merged(tree: dict[str, Any], seed: int) -> dict[str, Any]:
    """The sweep with another seed of the sampler."""
    return tree | {"search": tree["search"] | {"seed": seed}}


def measure_waves(seeds: int, trials: int) -> dict[str, float]:
    """All figures, by `<figure>_slots<slots>_wave<factor>`."""
    found: dict[str, float] = {}
    for slots in (2, 4, 8):
        free, idle, plain = waves(slots, None, seeds, trials)
        found |= {f"idle_slots{slots}": idle, f"regret_slots{slots}": plain}
        for factor in (1, 2, 4):
            wall, idle, found_regret = waves(slots, factor * slots, seeds, trials)
            key = f"slots{slots}_wave{factor}"
            found |= {f"wall_{key}": wall / free, f"idle_{key}": idle, f"regret_{key}": found_regret}
            print(f"{slots} slots, wave x {factor}: {wall / free:.2f} of the time, {idle:.0%} waiting, regret {found_regret:.4f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--waves", action="store_true")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--schedulers", default=",".join(SCHEDULERS))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.waves:
        found = measure_waves(given.seeds or 8, given.trials)
    else:
        found = measure(given.samplers.split(","), given.schedulers.split(","), given.seeds or 20, given.trials)
    print(json.dumps(found) if given.json else json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
