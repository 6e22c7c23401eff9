"""The contract of all readers; meta files, held-out episodes and provenance of sources."""

import dataclasses
import hashlib
import itertools
import json
import shutil

import numpy as np
import pytest

from data import sources
from data.faults import BadEpisodeError, Faults, TooManyBadEpisodesError
from data.readers.rlds import index_files
from data.rows.table import DATASETS, dataset
from data.sources import (
    READERS,
    SomeEpisodes,
    evenly_spread,
    hold_out,
    open_metas,
    open_reader,
    origin,
)
from data.spec import STORAGES as STORAGE_NAMES
from data.spec import Columns
from data.stream.batches import BatchForm, Collator
from data.stream.pipeline import batches, one_pass
from data.stream.stream import Sample
from data.stream.windows import episode_samples
from data.trajectory import Source
from tests.data import reference
from tests.data.builds import built
from tests.data.fakes import SHAPE, FakeReader, good, tokenize
from tests.data.random_recordings import recording
from tests.data.storages import FRAMES, STORAGES, TEXTS, image, small, write_hdf5

OPTIONS = {"num_actions": 6, "num_views": 3, "image_size": 32, "tokenize": tokenize}
FIXED_TEXT = {"scattered-jpeg": dataset("agiworld-on-site-pack").fixed_instruction}


def bridge(fixtures):
    """Real episodes; the sample's are too short for the margin of the row."""
    return dataclasses.replace(dataset("bridge_dataset"), index_margin=2, augment="none"), fixtures


@pytest.fixture(scope="module", params=STORAGES)
def generated(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, STORAGES[request.param](folder), folder


@pytest.fixture(scope="module", params=["rlds", "built", *STORAGES])
def opened(request, tmp_path_factory, fixtures):
    if request.param == "rlds":
        return open_reader(*bridge(fixtures))
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "built":
        row = STORAGES["hdf5"](folder)
        built(row, folder, folder / "built")
        return open_reader(row, folder / "built")
    return open_reader(STORAGES[request.param](folder), folder)


def parts(reader):
    return [list(reader.read(part)) for part in range(len(reader.episodes_per_part))]


def everything(reader):
    return list(itertools.chain.from_iterable(parts(reader)))


def test_a_storage_that_is_read_on_disks_only_is_refused_in_a_bucket(monkeypatch):
    monkeypatch.setattr(sources, "find_built", lambda spec, root: None)
    for storage in set(STORAGE_NAMES) - set(sources.IN_BUCKETS):
        row = next(row for row in DATASETS.values() if row.storage == storage)
        with pytest.raises(ValueError, match=rf"{row.name}' is stored as {storage}, .* gs://lab/x"):
            sources.open_reader(row, "gs://lab/x")


def test_every_storage_has_a_reader():
    assert set(READERS) == set(STORAGE_NAMES)


def test_parts_hold_the_episodes_that_are_announced(opened):
    assert tuple(map(len, parts(opened))) == opened.episodes_per_part


def test_trajectories_have_the_standard_form(opened):
    names = set()
    for trajectory in everything(opened):
        names.add(trajectory.episode)
        frames = len(trajectory.poses)
        assert trajectory.dataset == opened.spec.name
        assert trajectory.poses.shape == (frames, 20)
        assert trajectory.poses.dtype == np.float64
        assert trajectory.instruction.strip() == trajectory.instruction != ""
        assert len(trajectory.images) == len(opened.spec.views) >= 1
        for view in trajectory.images:
            assert frames <= len(view) <= frames + opened.spec.picture_offset
            taken = view.take(np.array([2, 2, 0]))
            assert len(taken) == 3
            for place, frame in enumerate((2, 2, 0)):
                alone, again = view[frame], taken[place]
                assert isinstance(alone, bytes | np.ndarray)
                np.testing.assert_array_equal(alone, again)
    assert len(names) == sum(opened.episodes_per_part)


def test_reading_again_gives_the_same(opened):
    for first, second in zip(everything(opened), everything(opened), strict=True):
        assert (first.episode, first.instruction) == (second.episode, second.instruction)
        np.testing.assert_array_equal(first.poses, second.poses)


def test_batches_go_on_where_they_stopped(opened):
    options = {**OPTIONS, "batch_size": 5, "seed": 3, "shuffle_buffer": 8}
    with batches([Source(opened, 1.0)], **options) as stream:
        every_batch = [next(stream) for _ in range(7)]
    with batches([Source(opened, 1.0)], **options, start_step=5) as stream:
        for batch in every_batch[5:]:
            again = next(stream)
            for name, array in batch.items():
                np.testing.assert_array_equal(again[name], array)


def test_samples_equal_the_slow_reference(generated):
    name, row, folder = generated
    reader = open_reader(row, folder)
    trajectories = everything(reader)
    for episode, (trajectory, frames) in enumerate(zip(trajectories, FRAMES, strict=True)):
        assert trajectory.instruction == FIXED_TEXT.get(name, TEXTS[episode])
        ours = episode_samples(trajectory, reader.spec, 6)
        raw = recording(row, frames, episode)
        span = (1, frames - 1) if name == "lerobot-agibot" else None
        theirs = reference.samples_of_row(raw, row, 6, span=span)
        assert ours.frames.tolist() == [frame for frame, _, _ in theirs]
        assert len(theirs) > 2
        np.testing.assert_allclose(ours.proprio, [p for _, p, _ in theirs], atol=5e-7)
        np.testing.assert_allclose(ours.actions, [a for _, _, a in theirs], atol=5e-7)


def test_every_sample_has_the_images_of_its_frame(generated):
    _, row, folder = generated
    reader = open_reader(row, folder)
    episodes = [episode_samples(t, reader.spec, 6) for t in everything(reader)]
    every_batch = list(one_pass([Source(reader, 1.0)], **OPTIONS, batch_size=4))
    images = np.concatenate([batch["images"] for batch in every_batch])
    place = 0
    for episode, samples in enumerate(episodes):
        for frame in samples.frames.tolist():
            for view in range(len(reader.spec.views)):
                expected = image(episode, view, frame + row.picture_offset)
                error = np.abs(images[place, view].astype(int) - expected)
                assert error.max() <= 6, "lossy codecs, less than a third of a frame's step"
            assert not images[place, len(reader.spec.views) :].any()
            place += 1
    assert place == len(images)


def test_a_missing_key_is_named_beside_those_there_are(generated):
    _, row, folder = generated
    if row.joints:
        bad = dataclasses.replace(row, joints=(*row.joints, Columns("torques", 0, 1)))
    else:
        gripper = dataclasses.replace(row.arms[0].gripper, key="torques")
        arms = tuple(dataclasses.replace(arm, gripper=gripper) for arm in row.arms)
        bad = dataclasses.replace(row, arms=arms)
    with pytest.raises(ValueError, match=r"reads .*torques.* does not have"):
        open_reader(bad, folder)


def test_a_missing_dataset_says_where_it_was_looked_for(generated, tmp_path):
    _, row, _ = generated
    with pytest.raises(FileNotFoundError, match=row.storage_name):
        open_reader(row, tmp_path)


def test_a_cut_file_is_named_with_its_dataset(generated, tmp_path):
    name, _, _ = generated
    row = STORAGES[name](tmp_path)
    reader = open_reader(row, tmp_path)
    endings = (".hdf5", ".h5", ".parquet", ".json", ".npz", ".pkl")
    states = [p for p in tmp_path.rglob("*") if p.suffix in endings and "meta" not in str(p.name)]
    cut = max(p for p in states if "meta" not in p.parts)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    bad = [t for t in everything(reader) if isinstance(t, BadEpisodeError)]
    assert bad
    for error in bad:
        assert str(error).startswith(f"dataset '{row.name}', episode {tmp_path}")
        assert error.kind in ("unreadable", "malformed")


def test_a_broken_image_is_named_with_its_frame(generated, tmp_path):
    name, _, _ = generated
    row = STORAGES[name](tmp_path)
    reader = open_reader(row, tmp_path)
    trajectories = everything(reader)
    samples = episode_samples(trajectories[0], reader.spec, 6)
    if name == "hdf5":  # its images are in the same file as the poses, and were read
        np.asarray(samples.images[0])[0] = b"no image"
    for path in (p for p in tmp_path.rglob("*") if p.suffix in (".mp4", ".jpg", ".npz")):
        path.write_bytes(path.read_bytes()[:40])
    collate = Collator(BatchForm(3, 32, tokenize), faults=Faults(0))
    with pytest.raises(TooManyBadEpisodesError, match=rf"frame \d+, {reader.spec.view_keys[0]}"):
        collate([iter([Sample(reader.spec, samples, 0, 0, 0)])])
    collate.close()


@pytest.fixture
def folder(tmp_path):
    write_hdf5(tmp_path, small("Calvin"))
    return tmp_path


def _samples(source):
    parts = range(len(source.reader.episodes_per_part))
    return [t for part in parts for t in Faults(0).sift(source.reader.read(part))]


def test_a_file_is_a_source(folder):
    (source,) = open_metas(folder / "meta.json")
    assert (source.reader.spec.name, source.weight) == ("Calvin", 1.0)
    assert len(_samples(source)) == len(FRAMES)


def test_a_folder_is_searched_and_robot_type_names_the_row(folder, caplog):
    """The weight is that of the name, the row that of the robot, as with X-VLA."""
    meta = json.loads((folder / "meta.json").read_text())
    paths = (entry if isinstance(entry, str) else entry[0] for entry in meta["datalist"])
    meta["datalist"] = [str(folder / path) for path in paths]
    deeper = folder / "a" / "b"
    deeper.mkdir(parents=True)
    renamed = meta | {"dataset_name": "robomind-ur", "robot_type": "Calvin"}
    (deeper / "other.json").write_text(json.dumps(renamed))
    (deeper / "stats.json").write_text("[1]")
    sources = {source.reader.spec.name: source for source in open_metas(folder)}
    assert {name: source.weight for name, source in sources.items()} == {
        "Calvin": 1.0,
        "robomind-ur": 0.1,
    }
    assert {source.reader.spec.domain_id for source in sources.values()} == {2}
    assert "stats.json is no meta file" in caplog.text
    first, second = (_samples(source) for source in sources.values())
    assert [t.instruction for t in first] == [t.instruction for t in second]


def test_files_of_one_name_are_refused(folder):
    shutil.copy(folder / "meta.json", folder / "copy.json")
    with pytest.raises(ValueError, match=r"are both of dataset 'Calvin'; give one"):
        open_metas(folder)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"dataset_name": "Clavin", "datalist": ["x"]}', "unknown dataset 'Clavin'"),
        ('{"dataset_name": ', "cannot be read as JSON"),
    ],
)
def test_bad_files_are_named(tmp_path, content, problem):
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(ValueError, match=rf"meta\.json.*{problem}"):
        open_metas(tmp_path)


def test_a_folder_without_meta_files_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_metas(tmp_path / "nowhere")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="holds no meta file"):
        open_metas(tmp_path)


def _names(reader):
    parts = range(len(reader.episodes_per_part))
    return [trajectory.episode for part in parts for trajectory in good(reader, part)]


def test_numbers_are_spread_evenly():
    assert evenly_spread(1, 9) == {4}
    assert evenly_spread(3, 9) == {1, 4, 7}
    assert evenly_spread(8, 9) == {0, 1, 2, 3, 5, 6, 7, 8}
    assert all(len(evenly_spread(n, 23)) == n for n in range(1, 24))


def test_both_halves_together_are_the_source():
    source = Source(FakeReader([4, 0, 3, 2]), 0.7)
    training, held = hold_out(source, 3)
    assert (training.weight, held.weight) == (0.7, 0.7)
    assert held.reader.episodes_per_part == (1, 1, 1)  # numbers 1, 4 and 7 of nine
    assert _names(held.reader) == ["part0#1", "part2#0", "part3#0"]
    assert training.reader.episodes_per_part == (3, 2, 1)
    assert sorted(_names(training.reader) + _names(held.reader)) == sorted(_names(source.reader))


def test_only_files_with_a_kept_episode_are_read():
    reader = FakeReader([4, 3, 2])
    assert _names(SomeEpisodes(reader, frozenset({5}))) == ["part1#1"]
    assert reader.parts_read == [1]


@pytest.mark.parametrize("count", [0, 9, 10])
def test_something_must_be_left_on_both_sides(count):
    with pytest.raises(ValueError, match=rf"validation\.episodes is {count};.* 1 to 8 of them"):
        hold_out(Source(FakeReader([4, 3, 2]), 1.0), count)


def test_a_stride_takes_every_so_many_samples_of_an_episode():
    source = Source(FakeReader([2], frames=6), 1.0)
    every = list(one_pass([source], **SHAPE, tokenize=tokenize))
    third = list(one_pass([source], **SHAPE, tokenize=tokenize, stride=3))
    frames = [batch["proprio"][:, 0].tolist() for batch in (*every, *third)]
    assert frames == [[0, 1, 2, 3, 4, 100], [101, 102, 103, 104], [0, 3, 100, 103]]


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
