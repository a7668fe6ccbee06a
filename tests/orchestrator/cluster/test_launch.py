"""One command from a laptop, with stand-ins for `ray`, `ssh` and `rsync` that note how they were called."""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from orchestrator.ablate import main as ablate
from orchestrator.cluster import launch
from orchestrator.cluster.head import exit_code
from orchestrator.run.prepare import SweepRequest
from orchestrator.sweep import main

ROOT = Path(__file__).parents[3]
RAY = r"""#!/bin/sh
# Steps: look, submit, follow, mkdir, up, down, rsync-up, rsync-down. A file STEP in the folder `does` is run in place of a step.
step=$1
case "$1 $3" in
    exec*list_jobs*) step=look ;;
    exec*"job submit"*) step=submit ;;
    exec*"job logs"*) step=follow; job=$(echo "$3" | sed 's/.*--follow //') ;;
    exec*) step=mkdir ;;
esac
echo "$step $(echo "$*" | tr '\n' ' ')" >> calls
if [ -e does/$step ]; then . does/$step; exit; fi
case $step in
    look) echo "RuntimeError: Head node of cluster (tailtune) not found!"; exit 1 ;;
    follow) printf "Running entrypoint for job $job: x\r\nthe first line\r\nthe second line\r\n\r\n"
        printf -- "----------------\r\nJob '$job' succeeded\r\n----------------\r\n" ;;
    rsync-up) mkdir -p brought; cp -r "$3". brought ;;
    rsync-down) echo '{"event": "sweep_start"}' > "$4/ledger.jsonl" ;;
esac
"""
SSH = """#!/bin/sh
echo ssh $(echo "$*" | tr '\\n' ' ') >> calls
if [ -e does/ssh ]; then . does/ssh; else echo jobs:; fi
"""
UP = "echo jobs:"
"""What a head says that is up, and does nothing."""


class Laptop:
    """The machine on which the command is run, in a clone."""

    def __init__(self, folder: Path) -> None:
        self.clone, self.tools = folder / "clone", folder / "bin"
        for name in ("orchestrator/sweep.py", "Makefile", "ray_cluster.yaml", "clusters/on_prem.yaml", "clusters/fake.yaml"):
            (self.clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.clone / name)
        (self.clone / "does").mkdir()
        self.token = folder / ".ray" / "auth_token"
        self.token.parent.mkdir()
        self.token.write_text("a" * 64)
        self.token.chmod(0o600)
        self.tools.mkdir()
        for tool, text in (("ray", RAY), ("ssh", SSH), ("rsync", "#!/bin/sh\n")):
            (self.tools / tool).write_text(text)
            (self.tools / tool).chmod(0o755)
        for tool in ("cp", "sed", "tr", "mkdir", "kill", "cat"):
            (self.tools / tool).symlink_to(shutil.which(tool) or tool)
        self.sweep = folder / "elsewhere" / "my.yaml"  # not in the clone
        self.sweep.parent.mkdir()
        shutil.copy(ROOT / "search_spaces" / "digits_lt.yaml", self.sweep)
        self.results = self.clone / "results" / "my"

    def run(self, *more: str, cluster: str = "ray_cluster.yaml") -> int:
        return main([str(self.sweep), *more, "--cluster", cluster])

    def does(self, step: str, script: str) -> None:
        """From now on a step runs `script`."""
        (self.clone / "does" / step).write_text(script)

    def calls(self) -> list[str]:
        file = self.clone / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def steps(self) -> list[str]:
        return [call.split()[0] for call in self.calls()]

    def job(self) -> str:
        """The name of the job that was submitted."""
        (call,) = [call for call in self.calls() if call.startswith("submit")]
        return call.partition("--submission-id ")[2].split()[0]


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Laptop:
    found = Laptop(tmp_path)
    monkeypatch.chdir(found.clone)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(found.tools))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))  # beside which there is no `ray`
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(launch, "RETRY_S", 0.0)
    return found


ALL_STEPS = ["look", "up", "mkdir", "rsync-up", "submit", "follow", "rsync-down"]


def test_one_command_starts_the_cluster_runs_the_sweep_and_fetches_the_results(
    laptop: Laptop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert laptop.run("search.trials=3", "search.references={}") == 0
    assert laptop.steps() == ALL_STEPS
    assert (laptop.results / "ledger.jsonl").exists()
    assert (laptop.clone / "brought" / "my.yaml").read_text() == laptop.sweep.read_text()
    submitted = next(call for call in laptop.calls() if call.startswith("submit"))
    assert "--no-wait" in submitted
    command = ".venv/bin/python -m orchestrator.sweep ~/launched/my.yaml search.trials=3"
    assert f"cd ~/tailtune && RAY_AUTH_MODE=token exec {command}" in submitted
    assert "--name my --address auto" in submitted
    said = capsys.readouterr().out
    assert said.count("the first line\nthe second line\n") == 1
    assert "Running entrypoint" not in said
    assert "-----" not in said
    assert "results: results/my" in said
    assert "its head costs money until: " in said
    assert "ray down ray_cluster.yaml" in said


def put_files_into_results(laptop: Laptop) -> None:
    laptop.results.mkdir(parents=True)
    (laptop.results / "ledger.jsonl").write_text("of another sweep")


def change_cluster(field: str, value: object) -> Callable[[Laptop], None]:
    def change(laptop: Laptop) -> None:
        file = laptop.clone / "ray_cluster.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {field: value}, sort_keys=False))

    return change


@pytest.mark.parametrize(
    ("words", "spoil", "reason"),
    [
        (["resources.workers=30"], None, "my.yaml: resources.workers is 30, but the machines of ray_cluster.yaml hold"),
        ([], change_cluster("idle_timeout_minutes", 1), "ray_cluster.yaml:3: idle_timeout_minutes is 1, but a machine of aws"),
        ([], lambda laptop: laptop.token.unlink(), "which is missing; allowed: `ray get-auth-token --generate`"),
        ([], lambda laptop: laptop.token.write_text(""), "which is missing; allowed: `ray get-auth-token --generate`"),
        ([], lambda laptop: laptop.token.chmod(0o640), "has the mode 640, so that others can read it; allowed: chmod 600 ~/.ray"),
        ([], lambda laptop: (laptop.clone / "Makefile").unlink(), "which is no clone; allowed: run the command in the clone"),
        ([], change_cluster("file_mounts", {"~/.ray/auth_token": "~/.ray/auth_token"}), "bring no clone of this repository"),
        ([], lambda laptop: (laptop.tools / "ray").unlink(), "has no command `ray`; allowed: the environment of this clone"),
        ([], lambda laptop: (laptop.tools / "rsync").unlink(), "has no command `rsync`; allowed: apt install rsync"),
        ([], put_files_into_results, "results/my holds files already; nothing was started; allowed: another --name, or --resume"),
        (["--address", "auto", "--down", "always"], None, "--down is always, but no cluster is started; allowed: --cluster FILE"),
        (["--warm-start", "results/old", "--resume"], None, "--resume goes on with a sweep, --warm-start begins one"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_started(
    laptop: Laptop,
    words: list[str],
    spoil: Callable[[Laptop], None] | None,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if spoil:
        spoil(laptop)
    assert laptop.run(*words) == 2
    assert reason in capsys.readouterr().err
    assert laptop.calls() == []


def test_without_a_cluster_there_is_none_to_end(laptop: Laptop, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(laptop.sweep), "--down", "success"]) == 2
    assert "--down is success, but no cluster is started" in capsys.readouterr().err


def test_a_cluster_without_machines_is_not_started(laptop: Laptop, capsys: pytest.CaptureFixture[str]) -> None:
    assert laptop.run(cluster="clusters/fake.yaml") == 2
    assert "whose machines are processes; allowed: a cluster that runs already, with --address" in capsys.readouterr().err
    assert laptop.calls() == []


def test_a_token_elsewhere_is_named(laptop: Laptop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    laptop.token.rename(laptop.token.parent / "other")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(laptop.token.parent / "other"))
    assert laptop.run() == 2
    assert f"or the file of RAY_AUTH_TOKEN_PATH, {laptop.token.parent / 'other'}, in its place" in capsys.readouterr().err


FAILED = "Status message: Job entrypoint command failed with exit code {}, last available logs (truncated to 20,000 chars):\nx\n"


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (["Job 'my-1' succeeded\n", "----\n"], 0),
        (["Job 'my-1' failed\n", "----\n", FAILED.format(1)], 1),
        (["Job 'my-1' failed\n", "----\n", FAILED.format(130)], 130),
        (["Job 'my-1' failed\n", "----\n", "Status message: the supervisor has died\n"], 137),
        (["Job 'my-1' was stopped\n"], 130),
        ([], None),
    ],
)
def test_what_ray_says_of_a_job_is_its_exit_code(outcome: list[str], code: int | None) -> None:
    assert exit_code(outcome) == code


def following(ending: str) -> str:
    return f'echo "Running entrypoint for job $job: x"; echo a line; echo "Job \'$job\' {ending}"'


@pytest.mark.parametrize(
    ("ending", "down", "code", "ended"),
    [
        ("succeeded", "always", 0, True),
        ("succeeded", "success", 0, True),
        ("succeeded", "never", 0, False),
        ("failed; exit code 1,", "always", 1, True),
        ("failed; exit code 1,", "success", 1, False),
        ("was stopped", "success", 130, False),
    ],
)
def test_the_cluster_is_ended_when_that_is_wanted(laptop: Laptop, ending: str, down: str, code: int, ended: bool) -> None:
    laptop.does("follow", following(ending))
    assert laptop.run("--down", down) == code
    assert laptop.steps() == [*ALL_STEPS, *(["down"] if ended else [])]


@pytest.mark.parametrize("fault", ["echo no space left; exit 1", "true"], ids=["rsync fails", "nothing comes"])
def test_a_cluster_whose_results_could_not_be_fetched_is_not_ended(
    laptop: Laptop, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    laptop.does("rsync-down", fault)
    assert laptop.run("--down", "always") == 1
    assert laptop.steps() == ALL_STEPS
    said = capsys.readouterr().out
    assert "The results are on the head, and the cluster stays as it is. This fetches them: " in said
    assert "--resume" in said
    assert "costs money" in said


@pytest.mark.parametrize("down", ["never", "always"])
def test_a_cluster_that_does_not_start_is_shown_with_its_last_lines(
    laptop: Laptop, down: str, capsys: pytest.CaptureFixture[str]
) -> None:
    laptop.does("up", "for line in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22; do echo line $line; done; exit 1")
    assert laptop.run("--down", down) == 1
    assert laptop.steps() == ["look", "up", *(["down"] if down == "always" else [])]  # nothing can be lost
    said = capsys.readouterr().out
    assert "ray up failed; all output: " in said
    assert "line 22" in said
    assert "line 2\n" not in said


def test_a_cluster_that_ran_before_is_not_ended_by_a_failed_start(laptop: Laptop) -> None:
    laptop.does("look", UP)
    laptop.does("submit", "exit 1")
    assert laptop.run("--down", "always") == 1
    assert "down" not in laptop.steps()


def test_ctrl_c_stops_watching_and_tells_how_to_go_on(laptop: Laptop, capsys: pytest.CaptureFixture[str]) -> None:
    laptop.does("follow", f'echo "Running entrypoint for job $job: x"; echo a line; kill -INT {os.getpid()}; cat < /dev/zero')
    assert laptop.run("--down", "always") == 130
    assert laptop.steps() == ALL_STEPS[:-1]
    said = capsys.readouterr().out
    assert "stopped watching; the sweep goes on, on the head" in said
    assert "my.yaml --down always --cluster ray_cluster.yaml --resume\n" in said
    assert f"ray job stop --log-color=false --address http://127.0.0.1:8265 {laptop.job()}" in said
    assert "ray down ray_cluster.yaml" in said


def test_a_lost_connection_is_taken_up_again_and_no_line_is_shown_twice(
    laptop: Laptop, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = 'if [ ! -e lost ]; then echo > lost; echo "Running entrypoint for job $job: x"; echo line 1; exit 255; fi; '
    whole = 'echo "Running entrypoint for job $job: x"; echo line 1; echo line 2; echo "Job \'$job\' succeeded"'
    laptop.does("follow", broken + whole)
    assert laptop.run() == 0
    said = capsys.readouterr().out
    assert said.count("line 1\n") == said.count("line 2\n") == 1
    assert said.count("the connection to the head was lost") == 1


def test_a_head_that_never_answers_again_is_given_up_but_not_ended(
    laptop: Laptop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "RETRIES", 3)
    laptop.does("follow", "exit 255")
    assert laptop.run("--down", "always") == 1
    assert laptop.steps() == [*ALL_STEPS[:-1], "follow", "follow", "follow"]
    assert "the sweep may go on there" in capsys.readouterr().out


def test_a_sweep_that_runs_is_followed_with_resume_and_not_begun_again(
    laptop: Laptop, capsys: pytest.CaptureFixture[str]
) -> None:
    laptop.does("look", "echo jobs: my-20261127-120000")
    assert laptop.run() == 2
    assert "the cluster runs my already, as the job my-20261127-120000; allowed: --resume" in capsys.readouterr().err
    assert laptop.run("--resume", "--down", "success") == 0
    assert laptop.steps() == ["look", "look", "follow", "rsync-down", "down"]
    assert "my-20261127-120000" in next(call for call in laptop.calls() if call.startswith("follow"))


@pytest.mark.parametrize("job", ["my-other-20261127-120000", "02000000"])
def test_a_cluster_that_runs_something_else_is_left_alone(laptop: Laptop, job: str, capsys: pytest.CaptureFixture[str]) -> None:
    laptop.does("look", f"echo jobs: {job}")
    assert laptop.run() == 2
    assert f"the cluster runs {job}, which `ray up` would end; nothing was started" in capsys.readouterr().err
    assert laptop.steps() == ["look"]


def test_beside_another_job_a_sweep_is_followed_but_the_cluster_not_ended(
    laptop: Laptop, capsys: pytest.CaptureFixture[str]
) -> None:
    laptop.does("look", "echo jobs: my-20261127-120000 02000000")
    assert laptop.run("--resume", "--down", "always") == 2
    assert "the cluster runs 02000000, which `ray down` would end" in capsys.readouterr().err
    assert laptop.run("--resume") == 0
    assert laptop.steps() == ["look", "look", "follow", "rsync-down"]


def test_a_head_that_does_not_answer_is_not_started_anew(laptop: Laptop, capsys: pytest.CaptureFixture[str]) -> None:
    laptop.does("look", "echo ssh: connect to host: timed out; exit 1")
    assert laptop.run() == 2
    said = capsys.readouterr().err
    assert "it cannot be seen whether its head runs something" in said
    assert "timed out" in said
    assert laptop.steps() == ["look"]


def test_results_on_the_head_are_not_mixed_with_those_of_another_sweep(
    laptop: Laptop, capsys: pytest.CaptureFixture[str]
) -> None:
    laptop.does("look", f"echo begins: {'b' * 64} 10 {'c' * 64}; {UP}")
    assert laptop.run() == 2
    assert "the head holds results of my already; allowed: another --name, or --resume" in capsys.readouterr().err
    put_files_into_results(laptop)
    assert laptop.run("--resume") == 2
    assert "results/my holds another sweep than the head under this name" in capsys.readouterr().err
    assert laptop.steps() == ["look", "look"]


@pytest.mark.parametrize("code", [3, 130, 137])
def test_a_cluster_whose_results_may_not_all_be_in_the_store_is_not_ended(
    laptop: Laptop, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    laptop.does("follow", following(f"failed; exit code {code},"))
    assert laptop.run("--results", "s3://bucket/results", "--down", "always") == code
    assert "down" not in laptop.steps()
    assert "s3://bucket/results may lack a part of them" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("head", "refusal"),
    [
        (b"first\nsecond\n", "results/my has more of the sweep than the head, whose results would replace it"),
        (b"first\nanother\nand more of it\n", "results/my went on in another way than the sweep on the head"),
        (b"first\nsecond\nthird\nfourth\n", ""),
    ],
)
def test_what_a_laptop_has_beyond_the_head_is_not_replaced(
    laptop: Laptop, head: bytes, refusal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    laptop.results.mkdir(parents=True)
    own = b"first\nsecond\nthird\n"
    (laptop.results / "ledger.jsonl").write_bytes(own)
    first, shared = (hashlib.sha256(part).hexdigest() for part in (b"first\n", head[: len(own)]))
    laptop.does("look", f"echo begins: {first} {len(head)} {shared}; {UP}")
    assert laptop.run("--resume") == (2 if refusal else 0)
    assert refusal in capsys.readouterr().err
    assert laptop.steps() == ["look"] if refusal else "rsync-down" in laptop.steps()


def test_a_sweep_goes_on_on_a_new_head_with_the_results_of_the_laptop(laptop: Laptop) -> None:
    put_files_into_results(laptop)
    assert laptop.run("--resume") == 0
    assert laptop.steps() == ["look", "up", *["mkdir", "rsync-up"] * 2, "submit", "follow", "rsync-down"]
    assert (laptop.clone / "brought" / "ledger.jsonl").read_text() == "of another sweep"
    assert "--address auto --resume" in next(call for call in laptop.calls() if call.startswith("submit"))


def test_a_sweep_that_the_head_refuses_has_no_results_to_fetch(laptop: Laptop) -> None:
    laptop.does("look", 'if [ -e brought ]; then echo jobs:; else echo "Head node of cluster (x) not found!"; exit 1; fi')
    laptop.does("follow", following("failed; exit code 2,"))
    assert laptop.run("--down", "always") == 2
    assert laptop.steps() == [*ALL_STEPS[:-1], "look", "down"]


def test_results_in_a_store_are_brought_there_by_the_head(laptop: Laptop, capsys: pytest.CaptureFixture[str]) -> None:
    assert laptop.run("--results", "s3://bucket/results") == 0
    assert laptop.steps() == ALL_STEPS[:-1]
    assert "--results s3://bucket/results" in next(call for call in laptop.calls() if call.startswith("submit"))
    assert "results: s3://bucket/results" in capsys.readouterr().out


def test_a_warm_start_brings_the_ledger_of_the_earlier_sweep(laptop: Laptop, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = laptop.clone / "results" / "old"
    (earlier / "checkpoints").mkdir(parents=True)
    (earlier / "ledger.jsonl").write_text("what was tried")
    laptop.does("follow", following("was stopped"))
    assert laptop.run("--warm-start", "results/old") == 130
    # What goes on is told of no other trials.
    assert "my.yaml --cluster ray_cluster.yaml --resume\n" in capsys.readouterr().out
    brought = laptop.clone / "brought" / "my-warm-start"
    assert [file.name for file in brought.iterdir()] == ["ledger.jsonl"]
    assert "--warm-start ~/launched/my-warm-start" in next(c for c in laptop.calls() if c.startswith("submit"))


def test_an_ablation_is_launched_in_the_same_way(laptop: Laptop) -> None:
    plan = ROOT / "search_spaces" / "ablation_lambda.yaml"
    assert ablate([str(plan), "--name", "mine", "--cluster", "ray_cluster.yaml", "--down", "always"]) == 0
    assert laptop.steps() == [*ALL_STEPS, "down"]
    submitted = next(call for call in laptop.calls() if call.startswith("submit"))
    assert "-m orchestrator.ablate ~/launched/mine.yaml --name mine --address auto" in submitted


def test_workers_that_stay_are_rid_of_ray(laptop: Laptop) -> None:
    assert laptop.run("--down", "always", cluster="clusters/on_prem.yaml") == 0
    _, *stops = [call for call in laptop.calls() if call.startswith("ssh")]
    assert [call.partition(" ubuntu@")[2] for call in stops] == [
        f"192.0.2.{number} cd && ~/tailtune/.venv/bin/ray stop" for number in (11, 12)
    ]
    assert all(f"-i {laptop.token.parents[1]}/.ssh/id_ed25519" in call for call in stops)


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_machines_that_stay_are_asked_when_ray_here_does_not_know_them(
    laptop: Laptop, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    laptop.does("ssh", "echo jobs: my-20261127-120000")
    assert laptop.run(*more, cluster="clusters/on_prem.yaml") == 2
    assert "but its head runs my-20261127-120000, which `ray up` would end" in capsys.readouterr().err
    assert laptop.steps() == ["look", "ssh"]
    assert " ubuntu@192.0.2.10 cd ~/tailtune" in laptop.calls()[1]


def test_what_is_nowhere_cannot_go_on(laptop: Laptop, capsys: pytest.CaptureFixture[str]) -> None:
    assert laptop.run("--resume") == 2
    assert "neither results/my nor the cluster holds a sweep that could go on" in capsys.readouterr().err
    assert laptop.steps() == ["look"]


@pytest.mark.parametrize("verb", ["sweep", "ablate"])
def test_a_dry_run_plans_for_the_cluster_and_starts_nothing(laptop: Laptop, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[SweepRequest] = []
    monkeypatch.setattr(f"orchestrator.{verb}.plan", lambda request: planned.append(request) or 0)
    run, file = (main, laptop.sweep) if verb == "sweep" else (ablate, ROOT / "search_spaces" / "ablation_lambda.yaml")
    assert run([str(file), "--dry-run", "--cluster", "ray_cluster.yaml", "--down", "always"]) == 0
    place = planned[0].cluster
    assert place
    assert place.file
    assert (place.address, str(place.file.path)) == ("auto", "ray_cluster.yaml")
    assert laptop.calls() == []
