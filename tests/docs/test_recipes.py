"""The recipes that launch a run on clusters: parsed, and run with stand-ins for the clusters."""

from __future__ import annotations

import json
import math
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.restarts.journal import RESUME
from tests.citations import ROOT

RECIPES = ROOT / "docs/recipes"
_ROW = re.compile(r"^#SBATCH (--[a-z-]+)(?:=(\S+))?$", re.MULTILINE)
_USAGE = 2  # exit status of a wrong command line

# Keys of the objects of a JobSet that the recipe may use, by Kubernetes's and JobSet's references.
_KEYS: Mapping[str, frozenset[str]] = {
    "": frozenset({"apiVersion", "kind", "metadata", "spec"}),
    "spec": frozenset({"failurePolicy", "replicatedJobs"}),
    "spec.failurePolicy": frozenset({"maxRestarts", "rules"}),
    "spec.failurePolicy.rules": frozenset({"name", "action", "onJobFailureReasons"}),
    "spec.replicatedJobs": frozenset({"name", "replicas", "template"}),
    "spec.replicatedJobs.template.spec": frozenset(
        {"completionMode", "parallelism", "completions", "backoffLimit", "podFailurePolicy"}
        | {"template"}
    ),
    "spec.replicatedJobs.template.spec.podFailurePolicy.rules": frozenset(
        {"action", "onExitCodes"}
    ),
    "spec.replicatedJobs.template.spec.podFailurePolicy.rules.onExitCodes": frozenset(
        {"containerName", "operator", "values"}
    ),
    "spec.replicatedJobs.template.spec.template.spec": frozenset(
        {"restartPolicy", "terminationGracePeriodSeconds", "nodeSelector", "tolerations"}
        | {"serviceAccountName", "containers"}
    ),
    "spec.replicatedJobs.template.spec.template.spec.containers": frozenset(
        {"name", "image", "ports", "command", "args", "resources"}
    ),
}
# subcommand of `gcloud compute tpus` -> flags that it takes, beside --project and --zone
_GCLOUD: Mapping[str, frozenset[str]] = {
    "queued-resources create": frozenset(
        {"--node-id", "--spot", "--accelerator-type", "--runtime-version"}
    ),
    "queued-resources describe": frozenset({"--format"}),
    "queued-resources delete": frozenset({"--force", "--quiet"}),
    "tpu-vm ssh": frozenset({"--worker", "--command"}),
}
_SBATCH = frozenset(
    {"--job-name", "--nodes", "--ntasks-per-node", "--time", "--signal", "--requeue", "--no-kill"}
    | {"--open-mode", "--output"}
)
_SRUN = frozenset({"--no-kill", "--kill-on-bad-exit", "--wait"})
_DOCKER = frozenset({"ARG", "FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "ENTRYPOINT", "CMD"})


def _config(monkeypatch: pytest.MonkeyPatch, words: Sequence[str]) -> Any:
    """The config of a command line of scripts.train, which takes it."""
    assert words[:3] == ["python", "-m", "scripts.train"]
    argv = ["scripts.train.py", *words[3:]]
    monkeypatch.setattr(sys, "argv", argv)
    command = runpy.run_path(str(ROOT / "scripts/train.py"))["COMMAND"]
    command.parse(argv)
    assert command.flags["restarts"].value >= 1
    return command.flags["config"].value


def _jobset() -> dict[str, Any]:
    return yaml.safe_load((RECIPES / "jobset.yaml").read_text())


def _wrong_keys(value: Any, path: str = "") -> list[str]:
    """Keys that Kubernetes would refuse, or worse, ignore."""
    if isinstance(value, list):
        return [wrong for item in value for wrong in _wrong_keys(item, path)]
    if not isinstance(value, dict):
        return []
    allowed = _KEYS.get(path, frozenset(value))
    wrong = [f"{path}.{key}" for key in value if key not in allowed]
    return wrong + [
        inner
        for key, item in value.items()
        for inner in _wrong_keys(item, f"{path}.{key}" if path else key)
    ]


def test_the_jobset_starts_one_process_for_each_host_of_its_slice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobset = _jobset()
    assert _wrong_keys(jobset) == []
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    hosts = math.prod(map(int, topology.split("x"))) // chips
    assert job["completionMode"] == "Indexed", "GKE sets TPU_WORKER_ID for these alone"
    assert job["parallelism"] == job["completions"] == hosts
    assert container["resources"]["requests"] == container["resources"]["limits"]
    config = _config(monkeypatch, [*container["command"], *container["args"]])
    assert config.distributed.kind == "auto"
    processes = hosts * replicated["replicas"]
    assert config.data.lanes % processes == 0
    assert config.batch_size % (processes * chips) == 0
    places = [word.partition("=")[2] for word in container["args"] if "://" in word]
    assert len(places) == 4
    assert all(place.startswith("gs://BUCKET/") for place in places), "pods have no disk"


def test_the_jobset_starts_again_after_a_stop_and_not_after_a_wrong_command_line() -> None:
    jobset = _jobset()
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [_USAGE]
    assert RESUME not in rule["onExitCodes"]["values"]
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert pod["restartPolicy"] == "Never", "podFailurePolicy needs it"
    assert job["backoffLimit"] == 0, "so that the JobSet starts all pods again, not one"
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    assert policy["rules"][0]["action"] == "FailJobSet"
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert pod["terminationGracePeriodSeconds"] >= 60


def _stand_in(folder: Path, name: str, body: str) -> None:
    """A program that writes its arguments as a line of JSON, then does what ``body`` says."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    log = folder / f"{Path(name).name}.log"
    path.write_text(
        f"#!{sys.executable}\nimport json, os, subprocess, sys\n"
        f"with open({str(log)!r}, 'a') as log:\n"
        f"    print(json.dumps(sys.argv[1:]), file=log)\n{body}\n"
    )
    path.chmod(0o755)


def _logged(folder: Path, name: str) -> list[list[str]]:
    path = folder / f"{name}.log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _run(folder: Path, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *command],
        cwd=folder,
        env={"PATH": f"{folder}:{os.defpath}:{os.environ['PATH']}", **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("status", [0, 1, RESUME])
def test_the_batch_job_starts_each_node_and_is_queued_again_when_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int
) -> None:
    script = RECIPES / "train.sbatch"
    rows = dict(_ROW.findall(script.read_text()))
    assert set(rows) <= _SBATCH
    nodes = int(rows["--nodes"])
    _stand_in(
        tmp_path,
        "srun",
        "words = [w for w in sys.argv[1:] if not w.startswith('--')]\n"
        f"ended = [subprocess.run(words, env=os.environ | {{'SLURM_PROCID': str(i)}}).returncode"
        f" for i in range({nodes})]\nsys.exit(max(ended))",
    )
    _stand_in(tmp_path, "scontrol", "print('node01\\nnode02')")
    _stand_in(tmp_path, "python", f"sys.exit({status} if os.environ['SLURM_PROCID'] == '1' else 0)")
    slurm = {"SLURM_JOB_NODELIST": "node[01-04]", "SLURM_JOB_ID": "71", "SLURM_NTASKS": str(nodes)}
    ended = _run(tmp_path, str(script), SHARED="/shared", **slurm)
    assert ended.returncode == status, ended.stderr
    flags = {word.partition("=")[0] for word in _logged(tmp_path, "srun")[0] if word[:2] == "--"}
    assert flags <= _SRUN
    started = _logged(tmp_path, "python")
    assert len(started) == nodes
    for index, words in enumerate(started):
        config = _config(monkeypatch, ["python", *words])
        chosen = config.distributed
        assert (chosen.kind, chosen.address) == ("coordinator", "node01:8476")
        assert (chosen.num_processes, chosen.process_id) == (nodes, index)
        assert config.data.lanes % nodes == 0
    requeued = ["requeue", "71"] in _logged(tmp_path, "scontrol")
    assert requeued == (status == RESUME)


def test_the_batch_job_says_what_it_needs(tmp_path: Path) -> None:
    ended = _run(tmp_path, str(RECIPES / "train.sbatch"))
    assert ended.returncode == 1
    assert "SHARED: a folder that all nodes share" in ended.stderr


_TPU = {"PROJECT": "p", "ZONE": "us-west4-a", "NAME": "slice", "BUCKET": "lab"}


@pytest.mark.parametrize("step", ["create", "setup", "train", "status", "delete"])
def test_each_step_on_cloud_tpu_is_a_command_of_gcloud(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str
) -> None:
    _stand_in(tmp_path, "gcloud", "")
    environ = _TPU | {"REPOSITORY": "https://example.org/xvla.git"}
    ended = _run(tmp_path, str(RECIPES / "cloud_tpu.sh"), step, **environ)
    assert ended.returncode == 0, ended.stderr
    (words,) = _logged(tmp_path, "gcloud")
    assert words[:2] == ["compute", "tpus"]
    allowed = _GCLOUD[" ".join(words[2:4])] | {"--project", "--zone"}
    assert {w.partition("=")[0] for w in words[4:] if w[:2] == "--"} <= allowed
    remote = "".join(w.removeprefix("--command=") for w in words if w.startswith("--command="))
    assert subprocess.run(["bash", "-n", "-c", remote], check=False).returncode == 0
    if step == "train":
        (tmp_path / "xvla").mkdir()
        _stand_in(tmp_path / "xvla", ".venv/bin/python", "")
        # the command ends at once, the run stays; here it is waited for
        assert _run(tmp_path, "-c", remote.removesuffix("&")).returncode == 0
        (argv,) = _logged(tmp_path / "xvla", "python")
        config = _config(monkeypatch, ["python", *argv])
        assert (config.distributed.kind, config.data.lanes) == ("auto", 4)
        assert config.data.root == "gs://lab/data"


def test_the_steps_on_cloud_tpu_say_what_they_need(tmp_path: Path) -> None:
    script = str(RECIPES / "cloud_tpu.sh")
    assert "PROJECT: the project of Google Cloud" in _run(tmp_path, script).stderr
    ended = _run(tmp_path, script, "launch", **_TPU)
    assert ended.returncode == _USAGE
    assert "usage: cloud_tpu.sh create | setup | train | status | delete" in ended.stderr
    assert "REPOSITORY" in _run(tmp_path, script, "setup", **_TPU).stderr


def _instructions() -> list[tuple[str, str]]:
    text = (RECIPES / "Dockerfile").read_text()
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    return [(word, " ".join(rest.split())) for word, rest in pairs]


def test_the_container_holds_this_checkout_and_its_pins() -> None:
    instructions = _instructions()
    assert {word for word, _ in instructions} <= _DOCKER
    arguments = dict(i[1].split("=") for i in instructions if i[0] == "ARG")
    assert instructions[1] == ("FROM", "python:${PYTHON}-slim")
    assert arguments["PYTHON"] in ("3.11", "3.12", "3.13")
    for word, rest in instructions:
        if word == "COPY":
            *sources, _ = rest.split()
            assert [s for s in sources if not (ROOT / s).exists()] == []
    (install,) = [rest for word, rest in instructions if "pip install" in rest]
    assert "--constraint requirements/constraints.txt" in install
    extras = re.findall(r"\.\[([a-z,]+)\]", install)[0].split(",")
    assert all(re.search(rf'^        "{extra}": \[', _text("setup.py"), re.M) for extra in extras)
    assert [rest for word, rest in instructions if word == "USER"] == ["1000"], "not root"
    image = re.findall(r"docker build .* -t (\S+) \.", _text("docs/recipes/Dockerfile"))
    assert image == re.findall(r"image: (\S+)", _text("docs/recipes/jobset.yaml"))


def _text(path: str) -> str:
    return (ROOT / path).read_text()


def test_the_container_starts_a_command_of_ours() -> None:
    words = {
        word: json.loads(rest) for word, rest in _instructions() if word in ("ENTRYPOINT", "CMD")
    }
    command = [*words["ENTRYPOINT"], *words["CMD"]]
    assert command[0] == "python"
    ended = subprocess.run(
        [sys.executable, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0
    assert "--restarts" in ended.stdout


@pytest.mark.slow
def test_the_container_is_built_where_a_builder_is() -> None:
    docker = shutil.which("docker")
    if (
        docker is None
        or subprocess.run([docker, "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no Docker daemon is here")
    build = shlex.split("docker build --check -f docs/recipes/Dockerfile .")
    ended = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
