"""All commands: the index names them, one thing has one flag, and --help loads nothing heavy."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data.inspection.views import IMAGES
from data.writing.recorded import RECORDED
from eval.robot.realtime import STRATEGIES
from scripts import __main__ as index
from scripts import (
    build_rlds,
    check_equivalence,
    choices,
    convert_checkpoint,
    inspect_data,
    latency_curve,
    make_random_checkpoint,
    prompt,
    random_weights,
    serve,
)
from scripts.equivalence.report import DTYPES, REFERENCE
from scripts.terminal import Command, UsageError
from xvla_jax.checkpoint_tools.convert_layout import SOURCE_DTYPE
from xvla_jax.checkpoints.accounting import INT8, STORED
from xvla_jax.preprocessing.resizing import RESIZING
from xvla_jax.pretrained import LAYOUTS, PEFT
from xvla_jax.serving.limits import Limits
from xvla_jax.serving.server import Door

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(name for names in index.COMMANDS.values() for name in names)
COMMANDS: dict[str, Command] = {
    name: importlib.import_module(f"scripts.{name}").COMMAND for name in NAMES
}
# command -> flags whose folder may lie in a bucket
_PROGRAMS = {name: {"program_cache"} for name in ("evaluate", "plan", "serve", "train")}
IN_BUCKETS = _PROGRAMS | {
    "build_rlds": {"root", "out"},
    "compare_results": {"export"},
    "convert_checkpoint": {"checkpoint", "out", "adapter"},
    "count_frames": {"root", "workdir"},
    "evaluate": {"out", "policy", "program_cache"},
    "inspect_data": {"root"},
    "merge_results": {"out"},
    "report": {"workdir"},
    "run_summary": {"out"},
    "serve": {"checkpoint", "adapter", "program_cache"},
    "train": {"workdir", "program_cache"},
}
PARTS = {"__init__", "__main__", "choices", "random_weights", "terminal"}  # no commands

# flag -> what it names, in every command that has it
FLAGS = {
    "accept_renderer": "evaluate although the golden frame differs",
    "across": "what two runs may differ in",
    "adapter": "PEFT folder that is merged into the weights",
    "adapter_b": "the same for a second checkpoint",
    "allowed_hosts": "names in the Host header",
    "any_domain": "serve domains without a contract",
    "answer": "NAME=VALUE for a question about a recording",
    "by": "what the nearest domain is chosen by",
    "by_stage": "a step's work by stage, pass and kind",
    "check": "compare only, or look at what was written",
    "checkpoint": "folder of a checkpoint, any layout",
    "client": "MODULE:FUNCTION of a robot's code",
    "config": "config file",
    "control": "evaluate control arms too",
    "data": "dataset, mixture or module:ROW",
    "demonstrations": "episodes that the quickstart records",
    "device": "what to compute on",
    "disable_slurm": "ignore the environment of SLURM",
    "domain": "domain id",
    "drain_seconds": "longest wait at the end",
    "dtype": "type of parameters or of tensors in a file",
    "dtypes": "several of these",
    "episodes": "number of episodes",
    "executed": "rows of a chunk that are carried out",
    "export": "file of episodes for other programs",
    "file": "file of an exported domain",
    "film": "name of the policy to film",
    "force": "replace a file that is there",
    "frames": "number of frames",
    "from": "domain that is copied",
    "host": "address to bind",
    "image_size": "side of images in px",
    "images": "images to decode",
    "inference": "plan the sampler too",
    "init_states": "initial states, first:end",
    "insecure": "no token",
    "instruction": "text of a task",
    "inspect": "answer POST /inspect",
    "int8_groups": "groups of parameters that become int8",
    "iters": "training steps",
    "json": "print JSON",
    "largest": "search for the largest batch",
    "latencies": "control steps",
    "layout": "layout of a checkpoint",
    "lerobot_python": "Python of an environment with lerobot",
    "licence": "terms of use of a dataset",
    "list": "print what to choose from",
    "markdown": "print Markdown",
    "max_drift": "limit of a certificate",
    "max_flips": "limit of a certificate",
    "max_bad_episodes": "bad episodes that are left out",
    "minutes": "time of all stages of the quickstart",
    "model_config": "config.json of a model",
    "name": "name of a domain",
    "num_actions": "actions of a chunk",
    "num_views": "number of views",
    "observations": "number of observations",
    "other": "a second checkpoint",
    "out": "what is written",
    "outside_root": "allow files outside of --root",
    "overwrite": "replace what is there",
    "platforms": "devices of a program",
    "plan": "[POLICY=]PLAN of the sampler",
    "plans": "sampler plans",
    "policy": "[NAME=][KIND:]FOLDER",
    "port": "port",
    "processor": "folder of processor files",
    "program_cache": "folder or bucket of compiled programs",
    "proprio": "kind of robot state",
    "quality": "JPEG quality",
    "rate_hz": "frames or actions per second",
    "read_limit_s": "seconds after which a read ends the command",
    "recorded": "folder of recorded episodes",
    "recorded_as": "dataset of recorded episodes",
    "rejoin_s": "seconds until a host is left out",
    "relative": "channels relative to proprio",
    "report": "JSON file of numbers",
    "rerun": "write an episode for the Rerun viewer",
    "resize": "how images are resized",
    "reference": "checkpoint to compare with",
    "restart": "forget finished episodes",
    "restarts": "starts after a failure",
    "robot": "arm of the quickstart",
    "root": "data folder",
    "rotation": "layout of 6-D rotations",
    "runner": "what runs the conversion",
    "seal": "the seal that was published",
    "seed": "seed",
    "server": "URL of a server",
    "shard": "I/N",
    "shard_mb": "size of a shard file",
    "simulator_python": "Python of a simulator in its own environment",
    "step_limit": "control steps of an episode",
    "steps": "denoising steps",
    "stop_early": "stop when a comparison is decided",
    "strategy": "NAME:HORIZON",
    "take_over": "take the workdir from a dead run",
    "task": "one row of eval/tasks/",
    "task_ids": "tasks of a row's suite",
    "tasks": "rows of eval/tasks/",
    "text_length": "text tokens",
    "timeout_s": "longest wait for an answer",
    "tls_cert": "PEM file",
    "tls_key": "PEM file",
    "token_file": "file with the token",
    "topology": "slices",
    "torch_package": "PyTorch package",
    "torch_python": "Python that has torch",
    "trusted_proxies": "addresses",
    "uncertified": "use plans that have no certificate",
    "verify": "read back and compare",
    "views": "names of cameras",
    "wander": "metres",
    "warm": "compile ahead of a run",
    "workdir": "folder of a run, read and written",
    "workers": "processes at once",
} | {f"max_{name}": "limit of the server" for name in serve.LIMITS}

# command -> other spelling -> flag: X-VLA's names, and ours of earlier releases
ALIASES = {
    "check_equivalence": {"adapter_a": "adapter"},
    "compare_client": {"dataset": "data", "processor_path": "processor"},
    "convert_libero": {"hdf5": "root", "demos": "episodes"},
    "evaluate": {"task": "tasks", "checkpoint": "policy"},
    "golden_frame": {"tasks": "task"},
    "latency_curve": {"tasks": "task", "checkpoint": "policy"},
    "make_random_checkpoint": {"config": "model_config"},
    "plan": {"views": "num_views"},
    "prompt": {"rate": "rate_hz"},
    "record_demos": {"tasks": "task"},
    "serve": {
        "model_path": "checkpoint",
        "processor_path": "processor",
        "LoRA_path": "adapter",
        "output_dir": "out",
        "views": "num_views",
    },
}
# in the order in which positional arguments set them
POSITIONAL = {
    "check_equivalence": ("checkpoint", "other"),
    "convert_checkpoint": ("checkpoint", "out"),
    "make_random_checkpoint": ("out",),
    "new_robot": ("root",),
}


def test_the_index_names_every_command() -> None:
    files = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    assert files - PARTS == set(NAMES)
    assert len(NAMES) == len(set(NAMES)) > 20
    lines = index.index().splitlines()
    for name in NAMES:
        assert sum(line.split()[:1] == [name] for line in lines) == 1
    assert max(map(len, lines)) <= 128


def test_one_thing_has_one_flag() -> None:
    flags = {flag for command in COMMANDS.values() for flag in command.names}
    assert sorted(flags) == sorted(FLAGS)


@pytest.mark.parametrize("name", NAMES)
def test_other_spellings_stay(name: str) -> None:
    aliases = {
        alias: flag for flag, spellings in COMMANDS[name].names.items() for alias in spellings
    }
    assert aliases == ALIASES.get(name, {})
    assert tuple(COMMANDS[name].positional) == POSITIONAL.get(name, ())


@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_has_a_summary_and_an_example(name: str) -> None:
    first, second, *rest = COMMANDS[name].doc.splitlines()
    assert first.endswith(".")
    assert second == ""
    assert any(line.startswith(f"python -m scripts.{name}") for line in rest)


@pytest.mark.parametrize("name", NAMES)
def test_a_command_ends_by_the_terminal(name: str) -> None:
    source = (ROOT / "scripts" / f"{name}.py").read_text()
    assert source.endswith("    sys.exit(COMMAND.run(main, sys.argv))\n")


_HELP = """
import contextlib, importlib, io, sys
shown = {}
for name in sys.argv[1:]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        command = importlib.import_module(f"scripts.{name}").COMMAND
        assert command.run(None, [name, "--help"]) == 0
    assert "Flags:" in out.getvalue() and len(out.getvalue()) < 4500, name
from scripts import __main__ as index
index.index()
print(*{name.split(".")[0] for name in sys.modules})
"""
_HEAVY = {"jax", "flax", "orbax", "transformers", "tensorflow", "tensorflow_datasets", "torch"} | {
    *("h5py", "pyarrow", "scipy", "matplotlib", "mujoco", "libero", "fastapi", "pydantic")
}


def test_help_and_the_index_load_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HELP, *NAMES], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) & (_HEAVY | {"xvla_jax"}) == set()


def _values(command: Command, flag: str) -> set[str]:
    parser: Any = command.flags[flag].parser
    return set(parser.enum_values)


def test_values_are_those_that_the_code_takes() -> None:
    """The flags repeat them, so that --help needs no import."""
    assert _values(convert_checkpoint.COMMAND, "layout") == {*LAYOUTS, PEFT}
    assert _values(convert_checkpoint.COMMAND, "resize") == set(RESIZING)
    assert _values(convert_checkpoint.COMMAND, "dtype") == {SOURCE_DTYPE, *STORED, INT8}
    assert _values(prompt.COMMAND, "dtype") == {SOURCE_DTYPE, *STORED}
    made = make_random_checkpoint.COMMAND
    assert _values(made, "dtype") == set(random_weights.STORED)
    assert _values(build_rlds.COMMAND, "recorded_as") == set(RECORDED)
    assert check_equivalence.COMMAND.flags["dtypes"].default == list(DTYPES)
    assert DTYPES[0] == REFERENCE
    assert inspect_data.COMMAND.flags["images"].default == IMAGES
    strategies = latency_curve.COMMAND.flags["strategy"].default or []
    by_default = {name for name, row in STRATEGIES.items() if row.prefix != "trained"}
    assert {text.partition(":")[0] for text in strategies} == by_default, "of any weights"


def test_defaults_of_the_server_are_those_of_its_classes() -> None:
    limits, door, flags = Limits(), Door(), serve.COMMAND.flags
    assert {name: default for name, (default, _) in serve.LIMITS.items()} == vars(limits)
    for flag in ("port", "drain_seconds", "insecure", "inspect"):
        assert flags[flag].default == getattr(door, flag)
    assert f"{door.host} if not given" in (flags["host"].help or "")


def test_tables_of_choices_have_their_columns() -> None:
    for name, table in choices.TABLES.items():
        rows = table.rows()
        assert len(rows) > 10, name
        assert {len(row) for row in rows} == {len(table.columns)}
        assert len({row[0] for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("value", "problems"),
    [
        ("bridge_dataset", 0),
        ("module:ROW", 0),
        ("module:ROW:0.5,module:SECOND:0.5", 0),
        ("bridge_dataset:0.5,droid_left:0.5", 0),
        ("bridge_datasets", 1),
    ],
)
def test_data_is_a_row_a_mixture_or_ones_own(value: str, problems: int) -> None:
    assert len(list(choices.problems("data", value))) == problems


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["gs://bucket/run", "s3://bucket/run", "a=gs://bucket/run"])
def test_no_flag_takes_a_bucket_for_a_local_folder(name: str, place: str) -> None:
    command = COMMANDS[name]
    texts = [f for f in command.names if command.flags[f].flag_type() in ("string", "multi string")]
    config = ["--config=configs/debug.py"] if name in ("train", "plan") else []
    for flag in texts:
        if flag in IN_BUCKETS.get(name, ()):
            continue
        with pytest.raises(UsageError, match=r"in a bucket; a local path is needed|unknown "):
            command.parse([name, *config, f"--{flag}={place}"])
        command.flags[flag].unparse()


@pytest.mark.parametrize("name", sorted(IN_BUCKETS))
def test_flags_that_may_lie_in_a_bucket_are_taken(name: str) -> None:
    command = COMMANDS[name]
    for flag in IN_BUCKETS[name]:
        problem = ""
        try:
            command.parse([name, f"--{flag}=gs://bucket/run"])
        except UsageError as error:  # other flags are missing
            problem = str(error)
        assert "in a bucket" not in problem
        command.flags[flag].unparse()


def test_a_bucket_among_the_options_of_a_runner_is_not_ours_to_refuse() -> None:
    needed = ("--data=bridge_dataset", "--root=r", "--out=gs://bucket/sets", "--licence=x")
    options = ["--temp_location=gs://bucket/tmp", "--artifacts=s3://bucket/x"]
    line = ["build_rlds", *needed, "--runner=dataflow", "--", *options]
    assert build_rlds.COMMAND.parse(line) == options


@pytest.mark.parametrize("name", [n for n in NAMES if "out" in COMMANDS[n].flags])
def test_a_store_that_a_command_does_not_serve_ends_it_with_2_and_makes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = COMMANDS[name]
    status = command.run(lambda _: pytest.fail("it began"), [name, "--out=s3://bucket/a"])
    command.flags["out"].unparse()
    assert status == 2
    assert "error: --out is s3://bucket/a, in a bucket" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_field_of_a_config_but_data_and_weights_may_lie_in_a_bucket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def parse(*fields: str) -> None:
        arguments = ["train", "--config=configs/debug.py", "--workdir=w", *fields]
        monkeypatch.setattr(sys, "argv", arguments)  # ml_collections looks there
        importlib.reload(importlib.import_module("scripts.train")).COMMAND.parse(arguments)

    parse("--config.data.root=gs://bucket/rlds", "--config.init_from=gs://bucket/base")
    for place in ("data.train_metas_path=gs://b/x", "init_from=s3://b/x", "data.root=s3://b/x"):
        field, _, address = place.partition("=")
        message = rf"--config.{field} is {address}, in a bucket; .*taken by --workdir and --config"
        with pytest.raises(UsageError, match=message):
            parse(f"--config.{place}")
