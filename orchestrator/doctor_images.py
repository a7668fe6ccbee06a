"""The doctor's look at the images of a sweep: what keeps it from running, what is unusual, and how to go on."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np

from orchestrator.config.sweep_config import read_sweep_with_origin
from orchestrator.finding import Finding
from orchestrator.terminal.plan import class_sizes
from trainables.config import TrialConfig
from trainables.config_file import ConfigError
from trainables.data import LongTailedData, build_data, open_source, survey_source
from trainables.data.choice import without_faults
from trainables.data.inspection import sets_of
from trainables.data.profiles import BANDS, FEW_BELOW, MANY_ABOVE
from trainables.data.skip_list import write_skip_list
from trainables.data.source import EncodedImages, Source, Vectors
from trainables.data.survey import Survey, equal_images, is_extreme, near_images, survey_images
from trainables.files import one_line
from trainables.words import plural

SHOWN = 10
"""How many images of a kind are named."""
SUBJECT = "data"
MEND = "save the image again or remove it"


class ImageReport:
    """The findings about a sweep's images, what a list of images to skip should hold, and settings that let the sweep start.

    Args:
        config: of the sweep's trials.
    """

    def __init__(self, config: TrialConfig) -> None:
        self._config = config
        self.to_skip: dict[str, str] = {}
        """Names of images, with the reason."""
        self.settings: list[str] = []
        """Changes of settings, without the list."""

    def findings(self) -> Iterator[Finding]:
        """All findings, each as soon as it is known."""
        try:
            whole = survey_source(self._config.data)
            yield from self._faults(whole)
            source = without_faults(whole)
        except ValueError as error:
            yield Finding("problem", SUBJECT, str(error), "change what is named above")
            return
        yield from (Finding("note", SUBJECT, note) for note in source.notes)
        if isinstance(source.images, Vectors):
            yield from self._vectors(source, source.images)
            return
        ids = np.concatenate(list(source.parts.values()))
        survey = survey_images(source.images, ids)
        yield from self._unreadable(source, survey)
        sound = replace(source, parts={part: of[np.isin(of, list(survey.looks))] for part, of in source.parts.items()})
        counts = sound.training_counts
        sizes = class_sizes(counts, source.class_names)
        yield Finding("ok", SUBJECT, f"{plural(len(survey.looks), 'image')} of {self._config.data.source} read")
        yield Finding("ok", SUBJECT, f"{len(counts)} classes{'' if len(sound.parts) == 1 else ' in train'}: {sizes}")
        yield from _alike(source.class_names)
        try:
            data = build_data(self._config.data, self._config.seed, without_faults(sound))
        except ValueError as error:
            yield Finding("problem", SUBJECT, str(error), "change what is named above")
            yield from self._duplicates(source, survey, {})
            return
        yield from self._sets(source, data)
        yield from self._duplicates(source, survey, {i: name for name, part in sets_of(data).items() for i in part.ids.tolist()})
        yield from self._unusual(source, survey)

    def _vectors(self, source: Source, vectors: Vectors) -> Iterator[Finding]:
        """Findings about feature vectors, of which there is nothing to look at."""
        number, length = vectors.features.shape
        yield Finding("ok", SUBJECT, f"{plural(number, 'vector')} of {length} numbers read")
        counts = source.training_counts
        sizes = class_sizes(counts, source.class_names)
        yield Finding("ok", SUBJECT, f"{len(counts)} classes{'' if len(source.parts) == 1 else ' in train'}: {sizes}")
        try:
            yield from self._sets(source, build_data(self._config.data, self._config.seed, source))
        except ValueError as error:
            yield Finding("problem", SUBJECT, str(error), "change what is named above")

    def _faults(self, source: Source) -> Iterator[Finding]:
        for fault in source.faults:
            yield Finding("problem", SUBJECT, fault.text)
            if fault.images:
                self._skip(source, fault.images[0], "a link to an image that is there already")
        present = source.training_counts
        if any(present[source.class_names.index(name)] == 0 for fault in source.faults for name in fault.classes):
            self.settings.append("trial.data.min_images=1")

    def _unreadable(self, source: Source, survey: Survey) -> Iterator[Finding]:
        if not survey.faults:
            return
        for image, fault in survey.faults.items():
            self._skip(source, image, fault.removeprefix(f"data.root: {self._place(source, image)}: "))
        for fault in list(survey.faults.values())[:SHOWN]:
            yield Finding("problem", SUBJECT, one_line(fault))
        more = f"{len(survey.faults) - SHOWN} more like these; " if len(survey.faults) > SHOWN else ""
        text = f"{more}{plural(len(survey.faults), 'image')} cannot be read, and a sweep does not start"
        yield Finding("problem", SUBJECT, text, f"trial.data.broken=skip leaves them out; or {MEND}")
        self.settings.append("trial.data.broken=skip")

    def _sets(self, source: Source, data: LongTailedData) -> Iterator[Finding]:
        named = [f"{name} {len(part)}" for name, part in sets_of(data).items() if len(part)]
        if self._config.data.meta == "from_train":
            named.append("meta from train")
        bands = ", ".join(str(BANDS[name](data.clean_counts).sum()) for name in ("acc_many", "acc_medium", "acc_few"))
        shots = f"classes with many (over {MANY_ABOVE}), medium and few (under {FEW_BELOW}) images to train on: {bands}"
        yield Finding("ok", SUBJECT, f"sets: {', '.join(named)}; {shots}")
        yield from (Finding("note", SUBJECT, note) for note in data.notes if note not in source.notes)

    def _duplicates(self, source: Source, survey: Survey, set_of: dict[int, str]) -> Iterator[Finding]:
        order = {part: rank for rank, part in enumerate(("test", "val", "meta", "train"))}
        part_of = {image: part for part, of in source.parts.items() for image in of.tolist()}
        pairs: list[tuple[int, int]] = []
        for group in equal_images(survey.looks):
            pairs += combinations(group, 2) if len(group) <= SHOWN else pairwise(group)
            labels = {int(source.labels[image]) for image in group}
            if len(labels) > 1:
                for image in group:
                    self._skip(source, image, f"equal images lie in {len(labels)} classes")
            else:
                first, *copies = sorted(group, key=lambda image: order[part_of[image]])
                for image in copies:
                    self._skip(source, image, f"a copy of {one_line(self._name(source, first))}")
        yield from self._pairs(source, pairs, "the same pixels", set_of)
        yield from self._pairs(source, near_images(survey.looks), "nearly the same image", set_of)

    def _pairs(self, source: Source, pairs: Sequence[tuple[int, int]], what: str, set_of: dict[int, str]) -> Iterator[Finding]:
        """Findings about pairs of equal images: in two classes, where a label must be wrong; in two sets; and in one."""

        def class_of(image: int) -> str:
            return source.class_names[int(source.labels[image])]

        def set_name(image: int) -> str:
            return set_of.get(image, "no set")

        kinds: dict[str, list[tuple[int, int]]] = {"two classes": [], "two sets": [], "one set": []}
        for a, b in pairs:
            two_sets = "two sets" if set_name(a) != set_name(b) else "one set"
            kinds["two classes" if class_of(a) != class_of(b) else two_sets].append((a, b))
        for where, found in kinds.items():
            of = class_of if where == "two classes" else set_name
            if found:
                counts = Counter(" and ".join(sorted({of(a), of(b)})) for a, b in found)
                counted = ", ".join(f"{number} in {kind}" for kind, number in counts.most_common(3))
                why = ", so labels are wrong" if where == "two classes" else ""
                yield Finding("note", SUBJECT, f"{what} in {where}{why}: {counted}{', ...' if len(counts) > 3 else ''}")
            for a, b in found[:SHOWN]:
                yield Finding("note", SUBJECT, " = ".join(f"{of(i)}: {one_line(self._place(source, i))}" for i in (a, b)))
            if len(found) > SHOWN:
                yield Finding("note", SUBJECT, f"{len(found) - SHOWN} more such pairs")

    def _unusual(self, source: Source, survey: Survey) -> Iterator[Finding]:
        looks, size = survey.looks, getattr(self._config.data, "image_size", None)
        kinds = {
            "turned upright, as EXIF says": [image for image, look in looks.items() if look.turned],
            "of several frames, of which the first is used": [image for image, look in looks.items() if look.frames],
            "transparent, which is not seen": [image for image, look in looks.items() if look.transparent],
            "of an extreme size": [image for image, look in looks.items() if is_extreme(look, size)],
        }
        for what, found in kinds.items():
            if found:
                named = [f"{one_line(self._name(source, i))} ({'x'.join(map(str, looks[i].size))})" for i in found[:3]]
                named += ["..."] if len(found) > 3 else []
                yield Finding("note", SUBJECT, f"{plural(len(found), 'image')} {what}: {', '.join(named)}")

    def _skip(self, source: Source, image: int, why: str) -> None:
        self.to_skip.setdefault(self._name(source, image), why)

    @staticmethod
    def _name(source: Source, image: int) -> str:
        return source.images.name(image) if isinstance(source.images, EncodedImages) else f"id {image}"

    @staticmethod
    def _place(source: Source, image: int) -> str:
        return source.images.place(image) if isinstance(source.images, EncodedImages) else f"id {image}"


def _alike(class_names: Sequence[str]) -> Iterator[Finding]:
    """A note for classes whose names differ in case or in spaces alone."""
    groups: dict[str, list[str]] = {}
    for name in class_names:
        groups.setdefault("".join(name.casefold().split()).replace("_", "").replace("-", ""), []).append(name)
    for first, *others in groups.values():
        if others:
            merged = ",".join(f"{first}={other}" for other in others)
            text = f"classes have nearly the same name: {', '.join(map(repr, [first, *others]))}"
            yield Finding("note", SUBJECT, text, f"if they are one class: {shlex.quote(f'trial.data.classes=[{merged}]')}")


def check_images(
    sweep: Path, overrides: Sequence[str], config: TrialConfig, skip_list: Path | None = None
) -> Iterator[Finding | list[str]]:
    """All findings about a sweep's images. If there are problems and settings that leave out what causes them, these settings
    come last, after they were tried.

    Args:
        sweep: the sweep's file.
        overrides: its settings that are changed.
        config: of its trials.
        skip_list: a new file for the names of images that had better be left out.
    """
    report = ImageReport(config)
    problems = False
    for finding in report.findings():
        problems |= finding.level == "problem"
        yield finding
    settings = report.settings
    if skip_list is not None:
        yield written(skip_list, report.to_skip)
        settings = [setting for setting in settings if "broken" not in setting] + [f"trial.data.skip={skip_list}"]
    if (problems or skip_list) and settings and starts(sweep, [*overrides, *settings]):
        yield settings


def written(file: Path, names: dict[str, str]) -> Finding:
    """Writes the list of images to skip. Returns a finding about it."""
    heading = "Images to leave out (trial.data.skip). Delete the lines of images that are to be used."
    try:
        write_skip_list(file, heading, names.items())
    except OSError as error:
        text = f"{file} cannot be written: {error.strerror}"
        return Finding("problem", SUBJECT, text, "another file, which does not exist, for --write-skip-list")
    return Finding("ok", SUBJECT, f"{file} lists {plural(len(names), 'image')} to leave out, each with the reason")


def starts(sweep: Path, overrides: Sequence[str]) -> bool:
    """Whether the sweep's data can be built with these settings."""
    try:
        trial = read_sweep_with_origin(sweep, list(overrides))[0].trial
        build_data(trial.data, trial.seed, open_source(trial.data))
    except (ConfigError, ValueError):
        return False
    return True
