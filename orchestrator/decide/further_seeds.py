"""Which variants of an ablation get more seeds: those that val does not tell from the reference yet."""

from collections.abc import Mapping

from orchestrator.config.ablation_config import AblationConfig, AdaptiveSeedsConfig
from orchestrator.ledger.trial_states import TrialState
from orchestrator.statistics.paired import PrimaryTest, Rule, undecided

Scores = Mapping[str, Mapping[int, float | None]]
"""By cell and seed; None for a trial without a result, because it diverged or failed."""


def on_val(trial: TrialState, metric: str) -> float | None:
    """What the rule looks at: the plan's metric, on val in place of test, at the same epoch."""
    part, name = metric.split("/", 1)
    if part in ("test", "val"):
        return trial.best_metrics.get(f"val/{name}")
    return trial.metrics[max(trial.metrics)].get(f"val/{name}") if trial.metrics else None


def further_seeds(plan: AblationConfig, seeds: AdaptiveSeedsConfig, scores: Scores, first_seed: int) -> list[tuple[str, int]]:
    """The cells and seeds that are missing at the present look; none when every cell is decided, or has the most seeds.

    A function of the results alone, so a resumed ablation finds the same. A cell that was decided at a look stays decided.

    Args:
        plan: of the ablation.
        seeds: of the plan.
        scores: of all trials that were suggested, all of them ended.
        first_seed: the trial's seed.
    """
    if plan.test is None:
        return []
    missing: list[tuple[str, int]] = []
    for condition in plan.conditions():
        cells = {cell.variant: cell.name for cell in plan.cells() if cell.condition == condition}
        missing += _missing(plan, seeds, {variant: scores[name] for variant, name in cells.items()}, cells, first_seed)
    return sorted(missing, key=lambda one: one[1])


def _missing(
    plan: AblationConfig, seeds: AdaptiveSeedsConfig, scores: Scores, cells: Mapping[str, str], first_seed: int
) -> list[tuple[str, int]]:
    assert plan.test is not None
    looks, open_ones = seeds.looks(), [variant for variant in scores if variant != plan.reference_name]
    for number, count in enumerate(looks):
        wanted = [
            (cells[variant], seed)
            for seed in range(first_seed, first_seed + count)
            for variant in (plan.reference_name, *open_ones)
            if seed not in scores[variant]
        ]
        if wanted or number == len(looks) - 1:
            return wanted
        so_far = {
            variant: {seed: score for seed, score in of.items() if seed < first_seed + count and score is not None}
            for variant, of in scores.items()
        }
        rule = Rule(margin=plan.margin, test=PrimaryTest(plan.test), level=plan.level, num_looks=len(looks))
        still = undecided(so_far, plan.reference_name, rule)
        if not (open_ones := [variant for variant in open_ones if variant in still]):
            return []
    return []
