"""Label noise for training images: a transition matrix between classes, and draws from it. Pure numpy."""

import numpy as np
from numpy.typing import NDArray

from trainables.data.source import Ids
from trainables.data_config import NoiseConfig

CIFAR10 = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
CIFAR10_PAIRS = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}
"""Asymmetric noise: right class -> given label. Source: Patrini et al., CVPR 2017."""
CIFAR100_SUPERCLASSES = """
    beaver dolphin otter seal whale; aquarium_fish flatfish ray shark trout; orchid poppy rose sunflower tulip;
    bottle bowl can cup plate; apple mushroom orange pear sweet_pepper; clock keyboard lamp telephone television;
    bed chair couch table wardrobe; bee beetle butterfly caterpillar cockroach; bear leopard lion tiger wolf;
    bridge castle house road skyscraper; cloud forest mountain plain sea; camel cattle chimpanzee elephant kangaroo;
    fox porcupine possum raccoon skunk; crab lobster snail spider worm; baby boy girl man woman;
    crocodile dinosaur lizard snake turtle; hamster mouse rabbit shrew squirrel;
    maple_tree oak_tree palm_tree pine_tree willow_tree; bicycle bus motorcycle pickup_truck train;
    lawn_mower rocket streetcar tank tractor"""
CIFAR100_PAIRS = {
    name: group[(place + 1) % len(group)]
    for group in (names.split() for names in CIFAR100_SUPERCLASSES.split(";"))
    for place, name in enumerate(group)
}
"""Asymmetric noise: within a superclass each class is labelled as the next class."""


def noisy_labels(labels: Ids, config: NoiseConfig, class_names: tuple[str, ...], rng: np.random.Generator) -> Ids:
    """Labels (N,) with noise: an annotator who confuses classes as `config` says would give them.

    Args:
        labels: the right labels, (N,).
        config: which classes are confused, and how often.
        class_names: one name for each class.
        rng: draws which images get a wrong label.

    Raises:
        ValueError: when `config.kind` is `pairs`, but there are no known or given pairs for these classes, or a pair names an
            unknown class.
    """
    if config.kind == "none":
        return labels
    matrix = transition_matrix(config, class_names)
    draws = rng.random(len(labels))
    noisy = labels.copy()
    for c, row in enumerate(matrix):
        of_class = labels == c
        # Inversion sampling: the first class whose cumulated probability exceeds the draw. Rounding may leave the last cumulated
        # probability slightly below 1, so the index is clipped.
        noisy[of_class] = np.searchsorted(row.cumsum(), draws[of_class], side="right").clip(max=len(row) - 1)
    return noisy


def transition_matrix(config: NoiseConfig, class_names: tuple[str, ...]) -> NDArray[np.float64]:
    """Probabilities (num_classes, num_classes): row = right class, column = label given; each row sums to 1.

    Source: `flip` and `flip2` as in Meta-Weight-Net's code (Hendrycks et al., NeurIPS 2018); `pairs` is Patrini et al., CVPR
    2017; `symmetric` draws among all classes, as in DivideMix.
    """
    size, rate = len(class_names), config.rate
    if config.kind == "symmetric":
        return np.eye(size) * (1 - rate) + rate / size
    matrix = np.eye(size)
    for c, targets in confusions(config, class_names).items():
        matrix[c, c] -= rate
        for target in targets:
            matrix[c, target] += rate / len(targets)
    return matrix


def confusions(config: NoiseConfig, class_names: tuple[str, ...]) -> dict[int, list[int]]:
    """The classes that a class is labelled as by mistake, for each class that has any."""
    size = len(class_names)
    if config.kind == "pairs":
        return {c: [target] for c, target in _pairs(config, class_names).items()}
    others = {"flip": 1, "flip2": 2}[config.kind]
    if size <= others:
        raise ValueError(f"data.noise.kind is {config.kind}, but there are only {size} classes; allowed: at least {others + 1}")
    rng = np.random.default_rng(config.seed)
    return {c: rng.choice(np.delete(np.arange(size), c), others, replace=False).tolist() for c in range(size)}


def _pairs(config: NoiseConfig, class_names: tuple[str, ...]) -> dict[int, int]:
    known = {frozenset(CIFAR10): CIFAR10_PAIRS, frozenset(CIFAR100_PAIRS): CIFAR100_PAIRS}
    given = {old: new for old, _, new in (pair.partition("=") for pair in config.pairs)}
    pairs = given or known.get(frozenset(class_names))
    if pairs is None:
        raise ValueError(
            "data.noise.kind is pairs, but which of these classes are similar is not known; "
            f"set data.noise.pairs, for example [{class_names[0]}={class_names[-1]}]"
        )
    for name in (*pairs.keys(), *pairs.values()):
        if name not in class_names:
            shown = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
            raise ValueError(f"data.noise.pairs names {name!r}, which is no class; allowed: {shown}")
    return {class_names.index(name): class_names.index(other) for name, other in pairs.items()}
