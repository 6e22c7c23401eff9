"""Objects of a bucket: complete or absent, conditional, repeated within a limit."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from pathlib import Path

import pytest
from etils import epath

from tests.fake_gcs import FakeStorage, Rule
from xvla_jax import buckets
from xvla_jax.errors import ConfigError

ONE = epath.Path("gs://lab/runs/one")


@pytest.mark.parametrize("path", ["s3://b/run", "gs://", "gs://lab", "gs://lab/", "hdfs://a/b"])
def test_other_places_are_refused_by_name(path: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--out={path}: allowed are .* gs://BUCKET/FOLDER"):
        buckets.place_of(path, flag="--out")


def test_places_of_this_machine_and_of_buckets(tmp_path: Path) -> None:
    assert buckets.place_of(tmp_path) == tmp_path
    assert type(buckets.place_of(epath.Path(tmp_path))) is type(tmp_path)
    place = buckets.place_of("gs://lab/runs//one/")
    assert str(place / "a") == "gs://lab/runs/one/a"
    assert buckets.absolute(place) is place


def test_objects_are_listed_read_and_removed(lab: FakeStorage, tmp_path: Path) -> None:
    names = [f"d/{number:03d}" for number in range(50)] + ["a b+c.txt"]
    for name in names:
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(name.encode() * 100 + b"\r\n\n")
    buckets.upload(tmp_path / "up", names, ONE)
    lab.put("runs/one_more/x", b"x", {})  # shares the beginning of its name
    lab.put("runs/one/", b"", {})  # that is how consoles make folders
    objects = buckets.files(ONE)
    assert [entry.name for entry in objects] == sorted(names), "of two pages"
    assert [[e.name for e in entries] for entries in buckets.entries(ONE)[:1]] == [["a b+c.txt"]]
    assert buckets.entries(ONE)[1] == ["d"]
    buckets.download(ONE, objects, tmp_path / "down")
    for name in names:
        assert (tmp_path / "down" / name).read_bytes() == (tmp_path / "up" / name).read_bytes()
    buckets.remove(ONE / "a b+c.txt")
    buckets.remove(ONE / "a b+c.txt")  # no error
    assert len(buckets.files(ONE)) == 50
    assert buckets.read(ONE / "gone") == (b"", buckets.ABSENT)


def test_one_of_many_creates_an_object(lab: FakeStorage) -> None:
    together, versions = threading.Barrier(6), []

    def create(content: bytes) -> None:
        together.wait()
        versions.append(buckets.write(ONE, content, replacing=buckets.ABSENT))

    threads = [threading.Thread(target=create, args=(b"%d" % i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert versions.count(None) == 5
    content, version = buckets.read(ONE)
    assert version in versions
    newer = buckets.write(ONE, content + b"!", replacing=version)
    assert buckets.write(ONE, b"late", replacing=version) is None
    buckets.remove(ONE, version=version)
    assert buckets.read(ONE) == (content + b"!", newer)


@pytest.mark.parametrize("action", [503, 429, "cut", "forget"])
def test_a_store_that_fails_for_a_moment_is_asked_again(
    action: int | str, lab: FakeStorage, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 400
    for method in ("POST", "GET .*alt=media", "DELETE"):
        lab.rules.append(Rule(f"^{method}", action))
    # "forget": the object is there, its answer was lost, and the repeated write finds its own
    version = buckets.write(ONE, content, replacing=buckets.ABSENT)
    assert version
    assert buckets.read(ONE) == (content, version)
    buckets.remove(ONE, version=version)
    assert buckets.read(ONE)[1] == buckets.ABSENT
    assert len(lab.met) == 3


def test_a_store_that_does_not_answer_ends_in_a_line(
    lab: FakeStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "LIMIT_S", 0.6)
    lab.rules = [Rule("", 503, times=1000)]
    with pytest.raises(OSError, match=r"gave no answer for 1 s: .*gs://lab/runs/one'$"):
        buckets.write(ONE, b"")
    assert len(lab.met) > 1


def test_what_is_not_allowed_ends_in_a_line(lab: FakeStorage) -> None:
    lab.put("runs/one", b"x", {})
    lab.rules = [Rule("POST|DELETE|alt=media", 403, times=1000)]
    for act in (
        lambda: buckets.write(ONE, b""),
        lambda: buckets.remove(ONE),
        lambda: buckets.read(ONE),
    ):
        with pytest.raises(PermissionError, match=r"may not do this: .*gs://lab/runs/one"):
            act()
    assert len(lab.met) == 3, "asked once"


def test_a_bucket_that_is_not_there_is_no_empty_one(lab: FakeStorage) -> None:
    for act in (buckets.read, buckets.files, lambda place: buckets.write(place, b"")):
        with pytest.raises(FileNotFoundError, match=r"no such bucket.*gs://other/a"):
            act(epath.Path("gs://other/a"))


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "a//b"])
def test_no_name_of_an_object_leads_out_of_the_copy(
    name: str, lab: FakeStorage, tmp_path: Path
) -> None:
    lab.put(f"runs/one/{name}", b"x", {})
    with pytest.raises(OSError, match="such a name has no place on a disk"):
        buckets.download(ONE, buckets.files(ONE), tmp_path / "deep" / "copy")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_object_that_changes_while_it_is_copied_is_an_error(
    lab: FakeStorage, tmp_path: Path
) -> None:
    buckets.write(ONE / "a", b"1")
    objects = buckets.files(ONE)
    buckets.write(ONE / "a", b"2")
    with pytest.raises(OSError, match="another process has changed it"):
        buckets.download(ONE, objects, tmp_path)
    with contextlib.suppress(FileNotFoundError):
        assert (tmp_path / "a").read_bytes() == b""


def test_what_a_killed_process_has_copied_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    live, kept = buckets.Scratch(), buckets.Scratch()
    kept.keep()
    killed = buckets.Scratch()
    _, _, (left, lock), _ = killed._end.detach() or pytest.fail("it has ended")
    (left / "large").touch()
    os.close(lock)  # as the end of a process does
    assert {*tmp_path.iterdir()} == {live.path, kept.path, left}
    with buckets.Scratch() as folder:
        assert {*tmp_path.iterdir()} == {live.path, kept.path, folder}
    live.remove()
    assert {*tmp_path.iterdir()} == {kept.path}
