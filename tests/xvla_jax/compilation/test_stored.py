"""A policy whose program is compiled ahead, and the file that spares the next one its tracing."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.xvla_jax import tiny
from xvla_jax.compilation import stored
from xvla_jax.models.xvla import XVLA, init_params
from xvla_jax.pretrained import save_pretrained

_CHILD = """
import sys
import jax
import numpy as np
from xvla_jax import Policy
from xvla_jax.compilation import program_cache, stored

jax.config.update("jax_enable_compilation_cache", True)
program_cache.keep_programs(sys.argv[2])
folder = program_cache.pathlib.Path(program_cache.folder_in_use())
traced = []
plain_export = stored.export.export
stored.export.export = lambda function: traced.append(1) or plain_export(function)
observation = {
    "images": [np.full((40, 40, 3), 90, np.uint8)], "instruction": "lift",
    "proprio": np.full(20, 0.1, np.float32), "domain_id": 3,
}

def actions(ahead):
    jax.clear_caches()
    policy = Policy.from_pretrained(sys.argv[1], ahead=ahead)
    return policy.act([observation], steps=2, seed=5)

plain = actions(None)
for case in ("first", "second", "damaged", "source"):
    if case == "damaged":
        [file] = folder.glob("*-lowered")
        file.write_bytes(file.read_bytes()[:-5])
    if case == "source":
        stored._source_digest = lambda: "another"
    before = len(traced)
    same = np.array_equal(actions(lambda processor: [(1, 1)]), plain)
    print(case, same, len(traced) - before, len(list(folder.glob("*-lowered"))))
"""


def test_shapes_are_traced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    traced = []

    def trace() -> dict[str, Any]:
        traced.append(1)
        return jax.eval_shape(lambda key: init_params(XVLA(tiny.CONFIG), key), jax.random.key(0))

    def shapes(name: str = "tiny") -> Any:
        return stored.stored_shapes(trace, {"parameters of": name})

    monkeypatch.setattr(stored, "folder_in_use", lambda: None)
    plain = shapes()
    assert [len(traced), list(tmp_path.iterdir())] == [1, []]
    monkeypatch.setattr(stored, "folder_in_use", lambda: str(tmp_path))
    assert shapes() == plain
    assert shapes() == plain
    assert len(traced) == 2
    shapes("another")
    assert len(traced) == 3
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-5])
    with caplog.at_level(logging.WARNING):
        assert shapes() == plain
    assert len(traced) == 4
    assert "is damaged and is made again" in caplog.text
    with jax.default_prng_impl("rbg"):
        assert shapes() == plain
    assert len(traced) == 5, "a program of other random numbers"
    monkeypatch.setattr(stored, "version", lambda package: f"another {package}")
    assert shapes() == plain
    assert len(traced) == 6, "another Flax may trace another program"


@pytest.mark.slow
def test_a_program_is_traced_once_and_gives_the_same_actions(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "base", tiny.CONFIG, tiny.params(), processor=tiny.PROCESSOR)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path / "base"), str(tmp_path / "programs")],
        capture_output=True,
        text=True,
        check=True,
    )
    # whether the actions are those of a policy without `ahead`, programs traced, files
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["first", "True", "1", "1"],
        ["second", "True", "0", "1"],
        ["damaged", "True", "1", "1"],
        ["source", "True", "1", "2"],
    ]
    [warning] = [line for line in done.stderr.splitlines() if "is damaged" in line]
    assert "is made again" in warning
