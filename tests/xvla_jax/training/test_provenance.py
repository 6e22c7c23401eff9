"""Code version, git state and origin of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.xvla_jax import tiny
from xvla_jax.training import provenance
from xvla_jax.training.provenance import code_version, git_state

FOLDERS = ("xvla_jax", "data", "scripts", "configs")


def _checkout(root: Path) -> Path:
    """A folder with one source in each of the hashed folders."""
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
        (root / folder / "a.py").write_text(f"NAME = {folder!r}\n")
    return root


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_change_in_each_source_folder_changes_the_hash(tmp_path: Path, folder: str) -> None:
    root = _checkout(tmp_path)
    before = code_version("1", root)["sources"]
    assert code_version("1", root)["sources"] == before
    (root / folder / "a.py").write_text("NAME = 'other'\n")
    assert code_version("1", root)["sources"] != before


def test_the_default_root_is_the_checkout_with_all_source_folders() -> None:
    root = Path(__file__).resolve().parents[3]
    assert all((root / folder).is_dir() for folder in FOLDERS)
    assert code_version("1") == code_version("1", root)


def test_outside_of_a_checkout_there_is_no_revision(tmp_path: Path) -> None:
    root = _checkout(tmp_path)
    assert git_state(root) is None
    assert code_version("1", root)["git_revision"] is None


def test_a_checkpoint_says_what_made_it() -> None:
    record = provenance.provenance(
        [{"name": "demos"}], tiny.mesh(1, 1), code={"xvla_jax": "1"}, init_from=None
    )
    assert record["schema"] == provenance.SCHEMA
    assert record["sources"] == [{"name": "demos"}]
    assert record["devices"]["mesh"] == {"data": 1, "fsdp": 1}
    assert record["packages"]["jax"]
    assert record["init_from"] is None
