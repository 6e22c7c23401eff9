"""Every path, name, command, flag and field that a text cites exists."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
from ml_collections import ConfigDict

from configs import base, xvla_released
from tests import citations

TEXTS = citations.texts()

# words that stand for a name of the reader's
PLACEHOLDERS = {"configs/X.py", "configs/CONFIG", "scripts.NAME", "a.b", "my_robot.py"}
FOREIGN_PATHS = {
    "data/chunk": "LeRobot's folders",
    "data/chunk_index": "a column of LeRobot's index",
    "data/file_index": "a column of LeRobot's index",
    "data/demo_i": "a group of LIBERO's HDF5 files",
    "data/demo_0": "a group of LIBERO's HDF5 files",
    "data/demo_1": "a group of LIBERO's HDF5 files",
    "compare.py": "the client of X-VLA's conformance kit",
    "models/modeling_xvla.py": "the original code",
    "modeling_xvla.py": "the original code",
    "install.sh": "CALVIN",
}
FOREIGN_FLAGS = {
    "argv0": "the loader of glibc",
    "porcelain": "git",
    "init": "git",
    "xla_cpu_enable_fast_math": "XLA",
    "xla_backend_optimization_level": "XLA",
    "xla_cpu_use_fusion_emitters": "XLA",
    "xla_force_host_platform_device_count": "XLA",
    "dist": "pytest",
    "logdir": "tensorboard",
    "blocks": "an arrow of a drawing",
    **dict.fromkeys(("net", "uts", "mount"), "unshare"),
    "bind": "mount",
    "nodes": "sbatch",
    "signal": "sbatch",
    "requeue": "sbatch",
    "location": "gcloud",
    "zone": "gcloud",
    "worker": "gcloud",
    "command": "gcloud",
    **dict.fromkeys(
        (
            "direct_num_workers",
            "direct_running_mode",
            "environment_config",
            "environment_type",
            "flink_master",
            "flink_version",
            "job_endpoint",
            "max_num_workers",
            "number_of_worker_harness_threads",
            "parallelism",
            "project",
            "region",
            "sdk_container_image",
            "spark_job_server_jar",
            "spark_master_url",
            "flink_job_server_jar",
            "temp_location",
        ),
        "Apache Beam",
    ),
}
ABSL_FLAGS = {"help", "helpfull", "flagfile", "alsologtostderr"}
# X-VLA's own flags, which scripts.train takes with this config
RELEASED_FLAGS = {*xvla_released.FLAGS, *xvla_released.SAME_NAME, "output_dir"}


def config_of(name: str | None) -> ConfigDict:
    if name is None:
        return base.get_config({})
    return importlib.import_module(f"configs.{name}").get_config()


def has_field(config: ConfigDict, field: str) -> bool:
    """A field of the model is one of any model: the base config has none yet."""
    part, _, rest = field.partition(".")
    if part not in config:
        return False
    value: Any = config[part]
    inside = isinstance(value, ConfigDict) and part != "model"
    return not rest or not inside or has_field(value, rest)


def known_flag(flag: str, flags: frozenset[str] | set[str]) -> bool:
    return flag in flags or (flag.startswith("no") and flag[2:] in flags)


FOREIGN_NAMES = {"data.pkl": "an entry of PyTorch's files"}


def complaints(find, exists, allowed=()) -> list[str]:
    return [
        f"{place} cites {cited}"
        for text in TEXTS
        for place, cited in find(text)
        if cited not in allowed and not exists(cited)
    ]


def test_cited_paths_exist() -> None:
    allowed = PLACEHOLDERS | set(FOREIGN_PATHS)
    assert complaints(citations.paths, citations.path_exists, allowed) == []


# a table that only gathers rows; who is to change a row is sent to where it is written
INDEXES = {"data/rows/table.py", "eval/tasks/table.py"}


def test_no_message_sends_the_reader_to_an_index() -> None:
    sent = [
        f"{place} cites {path}"
        for text in TEXTS
        if text.file.endswith(".py") and not text.is_docstring
        for place, path in citations.paths(text)
        if path in INDEXES
    ]
    assert sent == []


def test_links_of_pages_lead_to_files() -> None:
    missing = [
        f"{place} links to {link}"
        for text in TEXTS
        for place, link in citations.links(text)
        if not (citations.ROOT / text.file).parent.joinpath(link).exists()
    ]
    assert missing == []


def test_cited_names_are_defined() -> None:
    config = base.get_config({})  # `data.root` is a field of it

    def exists(name: str) -> bool:
        return citations.dotted_exists(name) or has_field(config, name)

    assert complaints(citations.dotted_names, exists, PLACEHOLDERS | set(FOREIGN_NAMES)) == []


def test_cited_fields_are_in_the_config() -> None:
    config = config_of(None)
    released = {flag for flag in RELEASED_FLAGS if flag not in config}
    lines = complaints(citations.config_fields, lambda f: has_field(config, f), PLACEHOLDERS)
    assert [line for line in lines if line.rpartition(" ")[2] not in released] == []


def all_commands() -> Iterator[citations.Command]:
    for text in TEXTS:
        for command in citations.commands(text):
            if command.module not in PLACEHOLDERS:
                yield command


def test_cited_commands_are_there_and_take_their_flags() -> None:
    wrong = []
    for command in all_commands():
        if not citations.dotted_exists(command.module):
            wrong.append(f"{command.place} cites {command.module}")
        flags = ABSL_FLAGS | citations.flags_of(command.module)
        if command.config == "xvla_released":
            flags |= RELEASED_FLAGS
        wrong += [
            f"{command.place}: {command.module} has no --{flag}"
            for flag in command.flags
            if not known_flag(flag, flags)
        ]
    assert wrong == []


def test_cited_commands_set_fields_of_their_config() -> None:
    wrong = [
        f"{command.place}: configs/{command.config}.py has no {field}"
        for command in all_commands()
        for field in command.config_fields
        if command.config != "X" and field not in PLACEHOLDERS
        if not has_field(config_of(command.config), field)
    ]
    assert wrong == []


def test_cited_flags_are_those_of_some_command() -> None:
    known = ABSL_FLAGS | RELEASED_FLAGS | set(FOREIGN_FLAGS)
    for folder in ("scripts", "benchmarks", "eval"):
        for path in (citations.ROOT / folder).rglob("*.py"):
            parts = path.relative_to(citations.ROOT).with_suffix("").parts
            known |= citations.flags_of(".".join(parts))
    assert complaints(citations.cited_flags, lambda flag: known_flag(flag, known)) == []


SOURCE = '''
"""See data/spec.py and xvla_jax/no_such_file.py, ``python -m scripts.train
--config=configs/debug.py --config.no.field=1 --no_such_flag=2``."""
def fail(value):
    # data.spec.DatasetSpec.fingerprint, data.spec.DatasetSpec.gone, eval.tasks.table.TASKS,
    # data.gone
    raise ValueError(f"config.batch_size or config.batch is {value} (--gone, data/{value}.py, "
                     f"data/rows/*.py, data/nothing_*.py)")
'''


@pytest.mark.parametrize(
    ("find", "exists", "wrong"),
    [
        (
            citations.paths,
            citations.path_exists,
            {"xvla_jax/no_such_file.py", "data/nothing_*.py"},
        ),
        (
            citations.dotted_names,
            citations.dotted_exists,
            {"data.spec.DatasetSpec.gone", "data.gone"},
        ),
        (citations.config_fields, lambda f: has_field(config_of(None), f), {"batch"}),
    ],
)
def test_a_citation_of_nothing_is_reported(find, exists, wrong) -> None:
    unresolved = [
        cited
        for text in citations.texts_of_source(SOURCE, "data/x.py")
        for _, cited in find(text)
        if not exists(cited)
    ]
    assert set(unresolved) == wrong


def test_a_command_is_read_over_line_ends() -> None:
    (text, *_) = citations.texts_of_source(SOURCE, "data/x.py")
    (command,) = citations.commands(text)
    assert command.module == "scripts.train"
    assert command.flags == ["config", "no_such_flag"]
    assert (command.config, command.config_fields) == ("debug", ["no.field"])
    assert "workdir" in citations.flags_of("scripts.train")
