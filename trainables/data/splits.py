"""Disjoint splits of a source into train, meta, val and test, class by class. Pure numpy."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trainables.data.source import Ids


def named(c: int, class_names: tuple[str, ...]) -> str:
    """A class as errors name it: its number, and its name if that differs from the number."""
    return f"class {c}" if class_names[c] == str(c) else f"class {c} ({class_names[c]})"


@dataclass(frozen=True)
class Split:
    """The ids of each set's images; no id is in two sets. `val` is empty if the meta set serves as val."""

    train: Ids
    meta: Ids
    val: Ids
    test: Ids

    def manifest(self) -> dict[str, list[int]]:
        """The ids of each set, as the manifest records them."""
        return {name: ids.tolist() for name, ids in vars(self).items()}


class PerClass(NamedTuple):
    """How many images of a class each set takes. None takes all remaining images of its part; two such sets take half each."""

    train: int | None
    meta: int | None
    val: int | None
    test: int | None


def split_classes(
    labels: Ids,
    parts: Mapping[str, Ids],
    class_names: tuple[str, ...],
    wanted: PerClass,
    profile: list[int] | None,
    seed: int | None,
    split_seed: int | None = None,
    fixed: Collection[str] = ("test",),
    at_least: int | None = None,
    long_tailed: Collection[str] = (),
) -> Split:
    """Takes the images of each class in the order test, val, meta, train.

    Train comes last, so the balanced sets do not change when only the long tail changes: sweeps over the imbalance share their
    test set. Test images come from the source's own test part, meta images from its meta part, or like val images from its
    val part. If the source does not have that part, they come from its train part.

    Args:
        labels: (N,), of the whole source.
        parts: ids of the source's own parts; `train` is required.
        class_names: one name for each class.
        wanted: images of each class in each set.
        profile: training images of each class, instead of `wanted.train`.
        seed: draws the images; None takes the first images for training and the last images for the other sets.
        split_seed: draws the images of the `fixed` sets, which are then the same for every `seed`. None means `seed`. Where both
            are equal, all sets are those of one draw.
        fixed: the sets that are the same for every `seed`: the first ones in the order above.
        at_least: classes that are too small for `wanted` give fewer images, but so many to each balanced set; None refuses them.
        long_tailed: the sets whose images are divided among the classes as the training images are; `wanted` is their mean.

    Raises:
        ValueError: when a class has too few images.
    """
    held_out = "val" if "val" in parts else "train"
    meta = "meta" if "meta" in parts else held_out
    home = {"test": "test" if "test" in parts else "train", "val": held_out, "meta": meta, "train": "train"}
    home = {name: part for name, part in home.items() if getattr(wanted, name) != 0}
    for name in home:
        if home[name] == "train" != name and getattr(wanted, name) is None:
            raise ValueError(
                f"data.{name}_per_class is None, but the source has no {'test' if name == 'test' else 'val'} part of its own; "
                "allowed: a number of images, to be taken from those for training"
            )
    rng = None if seed is None else np.random.default_rng(seed if split_seed is None else split_seed)
    # The rest is drawn anew where the trial has another seed: its images are those that the fixed sets have left.
    anew = None if seed is None or split_seed in (None, seed) else np.random.default_rng([seed, 1])
    pools = {part: _by_class(labels, ids, len(class_names)) for part, ids in parts.items()}
    taken: dict[str, list[Ids]] = {name: [np.empty(0, np.int64)] for name in Split.__dataclass_fields__}
    sizes = {part: [len(ids) for ids in pool] for part, pool in pools.items()}
    # Each set needs at least one image of each class, also where None is resolved to 0, unless a setting allows less.
    least = {name: 0 if name in long_tailed else 1 if at_least is None or name == "train" else at_least for name in home}
    numbers = []
    for c, here in enumerate(_asked(wanted, profile, sizes["train"], long_tailed)):
        of_class = {part: of[c] for part, of in sizes.items()}
        numbers.append(_numbers(here if at_least is None else _affordable(here, home, of_class, least), home, of_class))
    _check(class_names, wanted, profile, numbers, home, sizes, least, at_least, long_tailed)
    for c in range(len(class_names)):
        left = {part: _order(pool[c], rng) for part, pool in pools.items()}
        shuffled = anew is None
        for name, part in home.items():
            if not shuffled and name not in fixed:
                assert anew is not None
                left, shuffled = {other: anew.permutation(ids) for other, ids in left.items()}, True
            # Without a seed the ids are in reverse order for the other sets; train, which comes last, takes the first images.
            ids = left[part][::-1] if name == "train" and not rng else left[part]
            taken[name].append(ids[: numbers[c][name]])
            left[part] = ids[numbers[c][name] :]
    return Split(**{name: np.concatenate(ids) for name, ids in taken.items()})


def _by_class(labels: Ids, ids: Ids, num_classes: int) -> list[Ids]:
    order = ids[np.argsort(labels[ids], kind="stable")]
    return np.split(order, np.cumsum(np.bincount(labels[ids], minlength=num_classes))[:-1])


def _order(ids: Ids, rng: np.random.Generator | None) -> Ids:
    """`ids` shuffled, or without `rng` from last to first, because the sets other than train take the last images."""
    return rng.permutation(ids) if rng else ids[::-1]


def _asked(wanted: PerClass, profile: list[int] | None, pool: list[int], long_tailed: Collection[str]) -> list[PerClass]:
    """`wanted` of each class: with the profile, and with the shares of the sets that are long-tailed."""
    tail = profile or pool
    asked = []
    for c, share in enumerate(tail):
        sizes = {name: round(getattr(wanted, name) * len(tail) * share / sum(tail)) for name in long_tailed}
        asked.append(wanted._replace(**sizes, **({} if profile is None else {"train": profile[c]})))
    return asked


def _affordable(asked: PerClass, home: dict[str, str], sizes: dict[str, int], least: dict[str, int]) -> PerClass:
    """What a class can give of `asked`: at least `least`, and in all at most half of a part from which other sets take the rest.

    The images are divided in proportion to what is asked; the sets that come first round up.
    """
    given: dict[str, int] = {}
    for part, size in sizes.items():
        here = [name for name, origin in home.items() if origin == part]
        rest = [name for name in here if getattr(asked, name) is None]
        asks = {name: getattr(asked, name) for name in here if name not in rest and name != "train"}
        floors = {name: min(number, least[name]) for name, number in asks.items()}
        taken = asked.train or 0 if "train" in here else 0
        most = size // 2 if rest else size - taken
        extra, total = max(0, most - sum(floors.values())), sum(asks.values()) - sum(floors.values())
        extra, before, done = min(extra, total), 0, 0
        for name, number in asks.items():
            before += number - floors[name]
            upto = -(-extra * before // total) if total else 0
            given[name], done = floors[name] + upto - done, upto
    return asked._replace(**given)


def _numbers(wanted: PerClass, home: dict[str, str], sizes: dict[str, int]) -> dict[str, int]:
    """The number of images that each set takes of a class: `wanted` with None resolved."""
    numbers = {name: number for name in home if (number := getattr(wanted, name)) is not None}
    for name in home:
        if name not in numbers:
            free = sizes[home[name]] - sum(numbers[other] for other in numbers if home[other] == home[name])
            sharing = [other for other in home if home[other] == home[name] and other not in numbers]
            numbers[name] = free // len(sharing)
    return numbers


def _check(
    class_names: tuple[str, ...],
    wanted: PerClass,
    profile: list[int] | None,
    numbers: list[dict[str, int]],
    home: dict[str, str],
    sizes: dict[str, list[int]],
    least: dict[str, int],
    at_least: int | None,
    long_tailed: Collection[str],
) -> None:
    """Checks that each class has enough images in each of the source's parts.

    Raises:
        ValueError: when a class has too few images; the message names the class that lacks the most.
    """
    for part, of_class in sizes.items():
        sets = [name for name in reversed(home) if home[name] == part]
        floors = {name: _floor(least[name], getattr(wanted, name)) for name in sets}
        lacking = [sum(max(of[name], floors[name]) for name in sets) - size for of, size in zip(numbers, of_class, strict=True)]
        if sets and max(lacking) > 0:
            c = lacking.index(max(lacking))
            given = {name: getattr(wanted, name) for name in sets}
            if "train" in given and profile is not None:
                given["train"] = profile[c]
            where = f" in the {part} part" if len(sizes) > 1 else ""
            label, train = named(c, class_names), (given.get("train") or 1) if "train" in sets else 0
            if at_least and train <= of_class[c]:
                balanced = sum(least[name] == at_least for name in sets if name != "train")
                raise ValueError(
                    f"data.at_least_per_class is {at_least}, but {label} has only {of_class[c]} images{where}, "
                    f"for {', '.join(sets)}; lower it to at most {(of_class[c] - train) // max(1, balanced)}"
                )
            if tails := [name for name in sets if name in long_tailed]:
                raise ValueError(_too_long_a_tail(label, numbers[c], of_class[c], wanted, sets, tails))
            smaller = (
                "" if at_least is not None or train > of_class[c] else "; data.at_least_per_class=0 lets small classes give fewer"
            )
            raise ValueError(_too_few(label, given, of_class[c], where) + smaller)


def _too_long_a_tail(label: str, numbers: dict[str, int], size: int, wanted: PerClass, sets: list[str], tails: list[str]) -> str:
    """The error message for a class with too few images, where sets share the tail: their sizes for a class follow from means."""
    room = size - sum(numbers[name] for name in sets if name not in tails)
    share = max(0, room) / sum(numbers[name] for name in tails)
    at_most = {name: int(getattr(wanted, name) * share) for name in tails}
    cures = [f"data.{name}_per_class to at most {number}" for name, number in at_most.items()]
    cure = f"lower {' and '.join(cures)}" if all(at_most.values()) else "lower data.n_max or the sizes of the other sets"
    asked = ", ".join(f"{numbers[name]} for {name}" for name in sets)
    given = ", ".join(f"data.{name}_per_class is {getattr(wanted, name)} on average" for name in tails)
    return f"{given}, with the tail that is {asked} of {label}, which has only {size} images; {cure}"


def _floor(least: int, wanted: int | None) -> int:
    return least if wanted is None else min(least, wanted)


def _too_few(label: str, given: dict[str, int | None], size: int, where: str) -> str:
    """The error message for a class with too few images. `given` is the setting of each set; None means all that is left."""
    if not size:
        return f"data: {label} has no image{where}"
    train = given.pop("train", 0)
    phrases = [f"data.{name}_per_class is {number}" for name, number in given.items()]
    if train != 0:
        phrases.append("one at least is for training" if train is None else f"the profile takes {train} for training")
    numbers = {name: 1 if number is None else number for name, number in (given | {"train": train}).items()}
    total = sum(numbers.values())
    meta_at_most = size - total + numbers.get("meta", 0)
    if given.get("meta") is not None and meta_at_most >= 1:
        cure = f"lower data.meta_per_class to at most {meta_at_most}"
    elif "val" in given and not any(given.values()):
        cure = "data.val=meta takes one set for both"
    else:
        cure = "lower data.n_max or the sizes of the held-out sets" if train else "lower the sizes of the held-out sets"
    return f"{', '.join(phrases)}: {total} images, but {label} has only {size}{where}; {cure}"
