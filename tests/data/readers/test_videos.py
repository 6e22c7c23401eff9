"""Images out of videos: any frame, in any order, from any thread, without reading on to it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import data.readers.videos
from data.readers.videos import VideoImages
from tests.data.storages import RATE_HZ, image, write_video

pytest.importorskip("av", reason="videos need av (PyAV)")

FRAMES = 12


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    write_video(path, [image(0, 1, frame) for frame in range(FRAMES)])
    return path


def frame_shown(pixels):
    """Number of the frame, from its red."""
    return round((int(pixels[5, 5, 0]) - 10) / 20)


def by_time(video, **changes):
    return VideoImages(video, times=np.arange(FRAMES) / RATE_HZ, rate_hz=RATE_HZ)


@pytest.mark.parametrize("images", [VideoImages, by_time])
def test_frames_in_any_order(video, images):
    view = images(video)
    assert len(view) == FRAMES
    order = [0, 1, 2, 11, 10, 3, 3, 4, 9, 0, *range(FRAMES), *range(FRAMES)[::-1]]
    assert [frame_shown(view[frame]) for frame in order] == order
    taken = view.take(np.array([7, 2, 2])).take(np.array([1, 0]))
    assert [frame_shown(taken[i]) for i in range(len(taken))] == [2, 7]
    assert view[0].dtype == np.uint8
    assert view[0].shape == (32, 32, 3)


def test_times_within_half_a_frame_are_the_same_image(video):
    for shift in (-0.04, 0.04):
        times = np.arange(FRAMES) / RATE_HZ + shift
        view = VideoImages(video, times=times, rate_hz=RATE_HZ)
        assert [frame_shown(view[i]) for i in range(FRAMES)] == list(range(FRAMES))


def test_threads_do_not_disturb_each_other(video):
    view = VideoImages(video)
    order = np.random.default_rng(0).integers(0, FRAMES, 200).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda frame: frame_shown(view[frame]), order)) == order


def test_few_files_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(data.readers.videos, "OPEN_FILES_PER_THREAD", 2)
    monkeypatch.setattr(data.readers.videos, "_local", threading.local())
    views = []
    for number in range(4):
        write_video(tmp_path / f"{number}.mp4", [image(0, 0, number)] * 3)
        views.append(VideoImages(tmp_path / f"{number}.mp4"))
    for number in (0, 1, 2, 3, 0, 2):
        assert frame_shown(views[number][1]) == number
        assert len(data.readers.videos._local.videos) <= 2


def test_a_decoder_reads_no_further_than_the_image(video, monkeypatch):
    monkeypatch.setattr(data.readers.videos, "_local", threading.local())
    opened = data.readers.videos._open(video)
    decoded = []
    original = opened._container.decode

    class Counting:
        def __getattr__(self, name):
            return getattr(container, name)

        def decode(self, stream):
            for frame in original(stream):
                decoded.append(frame.pts)
                yield frame

    container = opened._container
    monkeypatch.setattr(opened, "_container", Counting())
    assert frame_shown(VideoImages(video)[11]) == 11
    assert len(decoded) <= 5, "from the key frame before it"


@pytest.mark.parametrize("place", [FRAMES, 10 * FRAMES])
def test_an_image_that_is_not_there_is_an_error(video, place):
    view = VideoImages(video, times=np.arange(20 * FRAMES) / RATE_HZ, rate_hz=RATE_HZ)
    with pytest.raises(ValueError, match=rf"a.mp4, image {place}: no frame at"):
        view[place]
    with pytest.raises(ValueError, match="out of bounds"):
        VideoImages(video)[place]


def test_what_is_no_video_is_an_error(tmp_path):
    (tmp_path / "b.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"b\.mp4, image 0"):
        VideoImages(tmp_path / "b.mp4")[0]
