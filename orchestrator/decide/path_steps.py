"""Which variants an ablation path trains next: the candidates of a step, once the steps before it are chosen on val."""

from collections.abc import Collection

from orchestrator.config.ablation_config import AblationConfig
from orchestrator.decide.further_seeds import Scores
from orchestrator.statistics.greedy_path import Score, Walk, walk


def missing_steps(plan: AblationConfig, scores: Scores, first_seed: int) -> list[tuple[str, int]]:
    """The cells and seeds that the next step is chosen among and that were not suggested yet; none when the path is complete.

    A function of the results alone, so a resumed ablation finds the same.

    Args:
        plan: of kind path.
        scores: of all trials that were suggested, all of them ended; a cell without one may be left out.
        first_seed: the trial's seed.
    """
    seeds = plan.seeds_from(first_seed)
    cells = [plan.name_of(names) for names in path_of(plan, scores, first_seed).open]
    return [(cell, seed) for seed in seeds for cell in cells if seed not in scores.get(cell, {})]


def path_of(plan: AblationConfig, scores: Scores, first_seed: int) -> Walk:
    """The path as far as it is known: a set of components has a score once it has a result, or none, on every seed.

    Args:
        plan: of kind path.
        scores: on val, of trials that have ended; a cell without one may be left out.
        first_seed: the trial's seed.
    """
    seeds = plan.seeds_from(first_seed)

    def score_of(names: Collection[str]) -> Score | None:
        of_cell = scores.get(plan.name_of(names), {})
        if any(seed not in of_cell for seed in seeds):
            return None
        values = [score for seed in seeds if (score := of_cell[seed]) is not None]
        return len(values), sum(values) / max(1, len(values))

    return walk(list(plan.components), score_of)
