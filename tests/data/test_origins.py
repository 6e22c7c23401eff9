"""Description of sources for the provenance of a run."""

import hashlib
import json

import pytest

from data.readers.rlds import index_files
from data.sources import hold_out, origin
from data.trajectory import Source
from tests.data.fakes import FakeReader


class _Stored(FakeReader):
    def __init__(self, folder):
        super().__init__([3, 2])
        self.index_files = index_files(folder)


def test_a_source_is_described_with_hashes_and_terms(tmp_path):
    (tmp_path / "dataset_info.json").write_text(json.dumps({"name": "demos"}))
    (tmp_path / "manifest.json").write_text(json.dumps({"licence": "CC-BY-4.0"}))
    training, held = hold_out(Source(_Stored(tmp_path), 0.5), 2)
    stated = origin(training, held_out=sum(held.reader.episodes_per_part))
    assert json.loads(json.dumps(stated)) == stated
    assert stated["name"] == "libero_demos"
    assert (stated["episodes"], stated["held_out_episodes"], stated["weight"]) == (3, 2, 0.5)
    assert stated["licence"] == "CC-BY-4.0"
    manifest = tmp_path / "manifest.json"
    expected = hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert stated["index_files"][str(manifest)] == expected
    assert len(stated["index_files"]) == 2


@pytest.mark.parametrize(
    ("content", "licence"),
    [
        ({"license": "MIT"}, "MIT"),
        ({"redistributionInfo": {"license": "CC0"}}, "CC0"),
        ({"redistributionInfo": None, "licence": ""}, "not stated"),
    ],
)
def test_terms_are_read_where_formats_have_them(tmp_path, content, licence):
    (tmp_path / "dataset_info.json").write_text(json.dumps(content))
    assert origin(Source(_Stored(tmp_path), 1.0))["licence"] == licence


def test_a_reader_of_a_user_needs_no_index_files():
    stated = origin(Source(FakeReader([1]), 1.0))
    assert (stated["index_files"], stated["licence"]) == ({}, "not stated")
