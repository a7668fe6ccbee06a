"""Which images and classes of a source are used: classes picked, left out or merged, images left out by a list or because they
cannot be read.
"""

import difflib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainables.data.skip_list import read_skip_list
from trainables.data.source import EncodedImages, Fault, Ids, Source
from trainables.data.splits import named
from trainables.data.unreadable import unreadable
from trainables.data_config import EncodedConfig
from trainables.files import one_line
from trainables.shown_commands import shown_command
from trainables.words import plural

NAMED = 5
"""How many images or classes a note names at most."""


def chosen(source: Source, config: EncodedConfig) -> Source:
    """The source without what the settings leave out. Ids of images stay as they are; an image that is left out is in no part.

    Raises:
        ValueError: when a setting names a class that the source does not have, or fewer than two classes are left.
    """
    images = source.images
    assert isinstance(images, EncodedImages)
    if config.classes:
        source = _with_classes(source, config.classes)
    if config.skip is not None:
        source = _without_listed(source, images, Path(config.skip))
    if config.broken == "skip":
        source = _without_unreadable(source, images)
    if config.min_images is not None:
        source = _without_small(source, config.min_images)
    return source


def _with_classes(source: Source, entries: Sequence[str]) -> Source:
    names = set(source.class_names)
    merged, left_out, only = dict[str, str](), set[str](), set[str]()
    for entry in entries:
        new, equals, old = entry.partition("=")
        if entry in names:
            only.add(entry)
        elif equals and new and _known(old, entry, source):
            merged[old] = new
        elif not equals and _known(entry.removeprefix("-"), entry, source):
            left_out.add(entry.removeprefix("-"))
    if clash := left_out & (only | set(merged)):
        raise ValueError(f"data.classes leaves out {min(clash)!r} and uses it; allowed: one of them")
    if only:
        left_out |= names - only - set(merged)
    target = {name: merged.get(name, name) for name in source.class_names if name not in left_out}
    return _renumbered(source, target)


def _known(name: str, entry: str, source: Source) -> bool:
    """True if the source has a class of this name.

    Raises:
        ValueError: otherwise, naming the classes that are most like it.
    """
    if name in source.class_names:
        return True
    near = difflib.get_close_matches(name, source.class_names, 3) or source.class_names[:NAMED]
    more = ", ..." if len(near) < len(source.class_names) else ""
    raise ValueError(
        f"data.classes holds {entry!r}, but there is no class {name!r}; allowed: names of classes ({', '.join(near)}{more}), "
        "each as it is, with - in front to leave it out, or as new=old to merge it"
    )


def _renumbered(source: Source, target: dict[str, str]) -> Source:
    """The source with the classes that `target` names; each of its keys counts as the class of its value. Others are left out.

    Raises:
        ValueError: when fewer than two classes are left.
    """
    class_names = tuple(dict.fromkeys(target.values()))
    if len(class_names) < 2:
        left = f"only {class_names[0]!r}" if class_names else "no class"
        raise ValueError(f"data.classes, data.min_images: {left} is left; allowed: at least 2 classes")
    number = [class_names.index(target[name]) if name in target else -1 for name in source.class_names]
    labels = np.array(number, dtype=np.int64)[source.labels]
    parts = {part: ids[labels[ids] >= 0] for part, ids in source.parts.items()}
    faults = tuple(fault for fault in source.faults if not fault.classes or set(fault.classes) <= set(target))
    # An image that is in no part needs a label that every reader of the labels takes.
    return _used(replace(source, labels=labels.clip(min=0), class_names=class_names, faults=faults), parts)


def _used(source: Source, parts: dict[str, Ids], note: str = "") -> Source:
    """The source with fewer images in its parts, and without the faults of images that are in none any more."""
    there = set(np.concatenate(list(parts.values())).tolist()) if any(fault.images for fault in source.faults) else set()
    faults = tuple(fault for fault in source.faults if set(fault.images) <= there)
    return replace(source, parts=parts, faults=faults, notes=(*source.notes, *([note] if note else [])))


def _without(source: Source, images: set[int], note: str) -> Source:
    gone = np.fromiter(images, np.int64, len(images))
    return _used(source, {part: ids[~np.isin(ids, gone)] for part, ids in source.parts.items()}, note)


def _without_listed(source: Source, images: EncodedImages, file: Path) -> Source:
    listed, found = read_skip_list(file), dict[str, int]()
    for image in np.concatenate(list(source.parts.values())).tolist():
        name = images.name(image)
        if name in listed or (name := os.path.normpath(name)) in listed:
            found[name] = image
    unknown = [f"line {number}: {one_line(name)}" for name, number in listed.items() if name not in found]
    note = f"data.skip: {plural(len(found), 'image')} of the list {'is' if len(found) == 1 else 'are'} left out"
    if unknown:
        note += f"; {len(unknown)} of its names are no image that is used ({_some(unknown)})"
    return _without(source, set(found.values()), note)


def _without_unreadable(source: Source, images: EncodedImages) -> Source:
    ids = np.unique(np.concatenate(list(source.parts.values())))
    faults = unreadable(images, ids)
    if not faults:
        return source
    listed = _some([one_line(text.removeprefix("data.root: ")) for text in faults.values()])
    verb = "is" if len(faults) == 1 else "are"
    note = f"data.broken is skip: {len(faults)} of {len(ids)} images cannot be read and {verb} left out ({listed})"
    return _without(source, set(faults), note)


def _without_small(source: Source, least: int) -> Source:
    counts = source.training_counts.tolist()
    sized = list(zip(source.class_names, counts, strict=True))
    if not (small := [f"{name}: {count}" for name, count in sized if count < least]):
        return source
    kept = _renumbered(source, {name: name for name, count in sized if count >= least})
    verb = "is" if len(small) == 1 else "are"
    note = f"data.min_images is {least}: {len(small)} of {len(sized)} classes {verb} smaller and {verb} left out ({_some(small)})"
    return replace(kept, notes=(*kept.notes, note))


def _some(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return "; ".join(texts[:NAMED]) + more


def refuse_faults(source: Source) -> None:
    """Refuses a source with faults.

    Raises:
        ValueError: naming the first fault, and how many more there are.
    """
    if source.faults:
        others = len(source.faults) - 1
        more = (
            f"; {others} more such faults are listed by: {shown_command('orchestrator.doctor', 'SWEEP.yaml')}" if others else ""
        )
        raise ValueError(source.faults[0].text + more)


def without_faults(source: Source) -> Source:
    """The source without the classes and images that have faults, for those who list faults and look at the rest."""
    gone = {image for fault in source.faults for image in fault.images[:1]}
    present = source.training_counts.tolist()
    kept = {name: name for name, number in zip(source.class_names, present, strict=True) if number}
    return replace(_without(_renumbered(source, kept), gone, ""), faults=())


def empty_classes(source: Source) -> list[Fault]:
    """A fault for each class that has no training image and no other fault."""
    train, names, present = source.parts["train"], source.class_names, source.training_counts
    known = {name for fault in source.faults for name in fault.classes}
    if not (empty := [c for c in np.flatnonzero(present == 0).tolist() if names[c] not in known]):
        return []
    allowed = f"allowed: at least one for each of the {len(names)} classes"
    if isinstance(source.images, EncodedImages):
        allowed += ", or data.min_images=1, which leaves out such classes"
        if len(train):
            highest = int(train[np.argmax(source.labels[train])])
            allowed += f"; the highest label is {source.labels[highest]} ({source.images.place(highest)})"
    return [Fault(f"data: {named(c, names)} has no training image in this source; {allowed}", (names[c],)) for c in empty]
