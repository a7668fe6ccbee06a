"""What MLflow tells of a sweep beside its series: the best and the last values of each trial, and the outcome in words."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.ledger.events import Event, Kind, Role, Status, TrialEndEvent
from orchestrator.tracking.page import objectives_of
from orchestrator.tracking.registry import Merit, Registered
from trainables.settings import flatten
from trainables.words import brief, plural


class Ended(NamedTuple):
    """A trial that has ended."""

    label: str
    """`search`, or the name of a reference or variant."""
    is_reference: bool
    status: Status
    best: dict[str, float]
    """The objectives at its best epoch; empty when it has none."""
    last_epoch: int
    last: dict[str, float]
    """The objectives at its last epoch."""


class Outcome:
    """Follows the events of a sweep."""

    def __init__(self) -> None:
        self.ended: dict[str, Ended] = {}
        self.best_trial = ""
        """The one that was exported."""
        self._objectives: list[str] = []
        self._select_by = ""
        self._labels: dict[str, tuple[str, bool]] = {}
        self._space: list[str] = []
        self._settings: dict[str, dict[str, Any]] = {}
        """The searched settings of each trial."""
        self._confirms: dict[str, str] = {}
        """Trials that run a configuration again, on another seed: the trial that they confirm."""
        self._series: dict[str, dict[int, dict[str, float]]] = {}
        """The objectives of trials that have not ended, by epoch."""
        self._exported: Mapping[str, float | None] = {}

    def apply(self, event: Event) -> None:
        """Takes one event."""
        if event["event"] == Kind.SWEEP_START or event["event"] == Kind.SWEEP_RESUME:
            self._objectives, self._select_by = objectives_of(event["config"]), event["config"]["trial"]["select_by"]
            self._space = list(event["config"].get("space", {}))
        elif event["event"] == Kind.SUGGEST:
            label = event["variant"] or event["role"]
            self._labels[event["trial_id"]] = (label, event["role"] == Role.REFERENCE)
            settings = flatten(event["config"])
            self._settings[event["trial_id"]] = {name: settings[name] for name in self._space if name in settings}
            if confirmed := event.get("confirms"):
                self._confirms[event["trial_id"]] = confirmed
        elif event["event"] == Kind.EPOCH:
            values = {name: value for name in self._objectives if (value := event["metrics"].get(name)) is not None}
            before = self._series.get(event["trial_id"], {})  # a trial may go on from an earlier state
            kept = {epoch: found for epoch, found in before.items() if epoch < event["epoch"]}
            self._series[event["trial_id"]] = kept | {event["epoch"]: values}
        elif event["event"] == Kind.TRIAL_END:
            self.ended[event["trial_id"]] = self._ended(event)
            if event["status"] != Status.INTERRUPTED:
                self._series.pop(event["trial_id"], None)
        elif event["event"] == Kind.EXPORT:
            self.best_trial, self._exported = event["trial_id"], event["metrics"]

    def _ended(self, event: TrialEndEvent) -> Ended:
        label, is_reference = self._labels.get(event["trial_id"], ("search", False))
        series = self._series.get(event["trial_id"], {})
        last_epoch, best = max(series, default=0), dict(series.get(event.get("best_epoch", 0), {}))
        if event.get("best_value") is not None:
            best[self._select_by] = event["best_value"]
        return Ended(label, is_reference, event["status"], best, last_epoch, series.get(last_epoch, {}))

    def over_seeds(self, trial_id: str) -> dict[str, float]:
        """The first objective over the fresh seeds on which the configuration of a trial ran again.

        The trial's own seed does not count: the search chose the trial because it was good on that seed.

        Returns: number of seeds, mean, sample standard deviation, and the limits of the mean's 95 % interval (Student's t), under
        the names that MLflow shows; empty for fewer than two seeds.
        """
        name = self._objectives[0]
        again = [other for other, confirmed in self._confirms.items() if confirmed == trial_id]
        finished = [self.ended[trial] for trial in again if trial in self.ended and self.ended[trial].status == Status.FINISHED]
        scores = [trial.best[name] for trial in finished if name in trial.best]
        if len(scores) < 2:
            return {}
        import numpy as np

        from orchestrator.statistics.t_interval import half_width  # loads scipy, which takes half a second

        mean, sd = float(np.mean(scores)), float(np.std(scores, ddof=1))
        half = half_width(sd, len(scores))
        return {"seeds/n": len(scores), "seeds/mean": mean, "seeds/sd": sd, "seeds/low": mean - half, "seeds/high": mean + half}

    def merit(self, sweep: str, split_sha256: str) -> Merit | None:
        """What the exported trial is judged by, if it has a value: the mean over fresh seeds where it was confirmed.

        Args:
            sweep: key of the sweep.
            split_sha256: digest of its images and split.
        """
        confirmed = self._confirms.get(self.best_trial, self.best_trial)
        seeds, metric = self.over_seeds(confirmed), self._objectives[0]
        value = seeds["seeds/mean"] if seeds else self.ended[self.best_trial].best.get(metric)
        return None if value is None else Merit(sweep, self.best_trial, split_sha256, metric, value, int(seeds.get("seeds/n", 0)))

    def best_and_references(self) -> list[str]:
        """The exported trial and the references that have a result."""
        references = [trial_id for trial_id, trial in self.ended.items() if trial.is_reference and trial.best]
        return list(dict.fromkeys([*([self.best_trial] if self.best_trial else []), *references]))

    def in_words(
        self,
        name: str,
        runs: Mapping[str, str],
        experiment_id: str,
        pages: Sequence[tuple[str, str]],
        registered: Registered | None,
    ) -> str:
        """The outcome as Markdown.

        Args:
            name: of the sweep.
            runs: the run of each trial.
            experiment_id: of the runs.
            pages: names and addresses, below that of the server.
            registered: the best trial in the registry.
        """
        count = Counter(trial.status.replace("_", " ") for trial in self.ended.values())
        statuses = ", ".join(f"{number} {status}" for status, number in count.items())
        lines = [f"**{name}**: {plural(len(self.ended), 'trial')}: {statuses}."]
        if trials := self.best_and_references():
            lines += ["", f"| trial | | {self._objectives[0]} |", "|---|---|---|"]
            for trial_id in trials:
                trial = self.ended[trial_id]
                what = "**best**" if trial_id == self.best_trial else trial.label
                shown = f"[{trial_id}](#/experiments/{experiment_id}/runs/{runs[trial_id]})" if trial_id in runs else trial_id
                best = trial.best.get(self._objectives[0])
                lines.append(f"| {shown} | {what} | {'' if best is None else f'{best:.4f}'} |")
        if settings := self._settings.get(self.best_trial):
            found = ", ".join(f"{name} {_short(value)}" for name, value in settings.items())
            lines += ["", f"Settings of {self.best_trial}: {found}."]
        if self.best_trial:
            lines += ["", "`python -m trainables.train best/config.yaml` trains it again; the file is among the artifacts here."]
        if (accuracy := self._exported.get("test/acc")) is not None:
            lines += ["", f"test/acc of the exported model, read once: {accuracy:.4f}."]
        if registered:
            place = f"[version {registered.version}]({registered.address.removeprefix('/')}) of the model {registered.name}"
            state = f"not the champion: {registered.why_not}" if registered.why_not else "the champion"
            lines += ["", f"In the registry: {place}, {state}."]
        lines += ["", " · ".join(f"[{title}]({address.removeprefix('/')})" for title, address in pages)]
        return "\n".join(lines)


def _short(value: Any) -> str:
    return brief(value) if isinstance(value, float) else str(value)
