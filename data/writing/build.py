"""Builds the dataset of one source, or goes on where an earlier run stopped.

<out>/.building-NAME/ holds a plan, the finished shards and a JSON for each; it is renamed to
<out>/NAME/VERSION when nothing is missing. Host memory is one episode for each worker, beside what
the reader of the source holds; RLDS readers hold a shard.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from data.faults import LEFT_OUT, BadEpisodeError, Faults, needs
from data.readers import built
from data.readers.rlds import SPLIT
from data.sources import open_reader
from data.stalls import end_reads_after
from data.standard import StandardForm
from data.trajectory import Reader
from data.untrusted import Places
from data.writing.plan import Piece, cut, look, tasks
from data.writing.publish import (
    Written,
    circumstances,
    dataset_info,
    publish,
    read_manifest,
    write_json,
)
from data.writing.shards import (
    DATASET,
    SHARDS,
    UNFINISHED,
    Event,
    Job,
    Request,
    ShardDone,
    ShardRecord,
    check_origin,
    origin_of,
    read_record,
    write_shards,
)

with needs("data"):
    from tensorflow_datasets.core import naming, splits
with needs("data"):
    import tensorflow as tf


class WorkerLostError(RuntimeError):
    """A worker process ended without a word."""


class _Failed(NamedTuple):
    """What went wrong in a worker."""

    reason: str


_READY = "ready for a task"


def events(
    job: Job, tasks: Sequence[Sequence[int]], *, reader: Reader, workers: int
) -> Generator[Event]:
    """Do the tasks, each a list of shards; with one worker in this process, with `reader`.

    Raises:
        ValueError: a source or a disk failed; not for bad episodes, which are events.
        WorkerLostError: a worker was killed, for want of memory for instance.
    """
    if min(workers, len(tasks)) <= 1:
        for task in tasks:
            yield from write_shards(job, reader, task)
        return
    crew = _start(job, min(workers, len(tasks)))
    try:
        yield from _direct(crew, deque(tasks))
    finally:
        for pipe, process in crew.items():
            pipe.close()
            process.terminate()
        for process in crew.values():
            process.join()


def _start(job: Job, count: int) -> dict[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
    crew: dict[Connection, BaseProcess] = {}
    for number in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work, args=(theirs, job), name=f"build-{number}", daemon=True
        )
        process.start()
        theirs.close()
        crew[ours] = process
    return crew


def _direct(crew: dict[Connection, BaseProcess], waiting: deque[Sequence[int]]) -> Iterator[Event]:
    busy = list(crew)
    while busy:
        for pipe in wait(busy):
            assert isinstance(pipe, Connection)
            try:
                said = pipe.recv()
                if said == _READY and waiting:
                    pipe.send(waiting.popleft())
                    continue
            except (EOFError, ConnectionError):
                raise _lost(crew[pipe]) from None
            if isinstance(said, _Failed):
                raise ValueError(said.reason)
            if said == _READY:
                busy.remove(pipe)
            else:
                yield said


def _lost(process: BaseProcess) -> WorkerLostError:
    process.join()
    return WorkerLostError(
        f"worker {process.name} ended with status {process.exitcode}; was it killed, for want of "
        "memory? what is finished is kept: run the same command again"
    )


def _work(pipe: Connection, job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that directs
    try:
        end_reads_after(job.read_limit_s)
        reader = open_reader(job.spec, job.root, job.places)
        while True:
            pipe.send(_READY)
            for event in write_shards(job, reader, pipe.recv()):
                pipe.send(event)
    except (EOFError, ConnectionError):
        return  # the process that directs is gone
    except (ValueError, OSError, tf.errors.OpError) as error:
        pipe.send(_Failed(str(error)))


DESCRIPTION = "Standard trajectories of xvla_jax; manifest.json tells of what and how."
CHANNEL_RULE = (
    "All images are in encoded_channel_order, whoever encoded them: rgb where image_size is not "
    "0, else the order of the recording. bgr_swapped: exchange red and blue after decoding."
)


def finish(
    request: Request,
    job: Job,
    records: Sequence[ShardRecord],
    origin: dict[str, Any],
    made_by: dict[str, Any],
    place: Path,
) -> dict[str, Any]:
    """Turn the building folder's shards into the dataset at `place`; gives its manifest.

    Raises:
        ValueError: no good episode.
    """
    episodes = sum(record.episodes for record in records)
    if not episodes:
        raise ValueError(f"dataset {job.spec.name!r} has no good episode; nothing is written")
    made = job.folder / DATASET
    _write_metadata(job, records)
    manifest = _manifest(request, job, records, origin) | made_by
    return publish(made, place, manifest, {record.file: record.sha256 for record in records})


def _write_metadata(job: Job, records: Sequence[ShardRecord]) -> None:
    folder = job.folder / DATASET
    info = dataset_info(job.name, built.VERSION, folder, DESCRIPTION, job.form.features())
    split = splits.SplitInfo(
        name=SPLIT,
        shard_lengths=[record.episodes for record in records],
        num_bytes=sum(record.bytes for record in records),
        filename_template=naming.ShardedFileTemplate(
            data_dir=epath.Path(folder),
            dataset_name=job.name,
            split=SPLIT,
            filetype_suffix="tfrecord",
        ),
    )
    info.set_splits(splits.SplitDict([split]))
    info.write_to_directory(folder)


def _manifest(
    request: Request, job: Job, records: Sequence[ShardRecord], origin: dict[str, Any]
) -> dict[str, Any]:
    frames = sum(record.frames for record in records)
    named = origin["named_by_storage"]
    not_written = _not_written(records)
    return {
        "schema": built.SCHEMA,
        "name": job.name,
        "version": built.VERSION,
        "row": job.spec.name,
        "fingerprint": built.fingerprint(origin["row"]),
        "episodes": sum(record.episodes for record in records),
        "frames": frames,
        "hours": frames / job.spec.rate_hz / 3600,
        "rate_hz": job.spec.rate_hz,
        "views": dict(zip(job.form.views, named["views"], strict=True)),
        "instruction_key": named["instruction_key"],
        "encoded_channel_order": job.channel_order,
        "channel_rule": CHANNEL_RULE,
        "form": dataclasses.asdict(job.form),
        "bad_episodes": {k: v for k, v in not_written.items() if k not in LEFT_OUT},
        "left_out": {k: v for k, v in not_written.items() if k in LEFT_OUT},
        "max_bad_episodes": request.max_bad_episodes,
        "made_of": origin,
    }


def _not_written(records: Sequence[ShardRecord]) -> dict[str, list[str]]:
    """Kind of fault, or reason of the row -> the episodes that are not in the dataset."""
    by_kind: dict[str, list[str]] = defaultdict(list)
    for record in records:
        for kind, episodes in record.bad_episodes.items():
            by_kind[kind] += episodes
    return dict(sorted(by_kind.items()))


PLAN_NAME = "plan.json"
DISK_RESERVE = 1.1  # of the estimate

Show = Callable[[int, int, int], None]


def build(request: Request, show: Show) -> Written:
    """Write the dataset of a source; one that is there and was made of the same is kept.

    Args:
        request: what to build.
        show: called with (episodes done, episodes in all, good ones) after each.

    Raises:
        FileNotFoundError: there is no such source.
        TooManyBadEpisodesError: more than `max_bad_episodes` cannot be used.
        ValueError: no licence, too little room on the disk, another dataset in that place, or
            another one half built.
        WorkerLostError: a worker was killed.
    """
    made_by = circumstances(request.licence, request.command)
    if "://" not in request.root:
        request = dataclasses.replace(request, root=os.path.abspath(request.root))
    end_reads_after(request.read_limit_s)
    places = Places.of(request.root, anywhere=request.outside_root)
    reader = open_reader(request.spec, request.root, places)
    name = built.built_name(request.spec)
    place = request.out / name / built.VERSION
    origin = origin_of(request, reader)
    folder = request.out / f".building-{name}"
    if place.exists():
        manifest = _present(place, origin)
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed at its very end
        return Written(place, manifest, new=False)
    _check_place(place)
    for part in (DATASET, SHARDS, UNFINISHED):
        (folder / part).mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        job, bytes_per_episode = _job(request, reader, folder, origin)
        records = _write(request, reader, job, bytes_per_episode, show)
        manifest = finish(request, job, records, origin, made_by, place)
    shutil.rmtree(folder)
    return Written(place, manifest, new=True)


def _present(place: Path, origin: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the dataset at `place`, which must be of the same origin."""
    manifest = read_manifest(place)
    if manifest.get("schema") != built.SCHEMA:
        raise ValueError(
            f"{place} already holds a dataset that is none of {built.SCHEMA}; build elsewhere"
        )
    check_origin(manifest["made_of"], origin, f"{place} already holds another dataset")
    return manifest


def _check_place(place: Path) -> None:
    """Nothing else may be in the parent of `place`: readers would mistake one for the other."""
    others = [path.name for path in place.parent.iterdir()] if place.parent.exists() else []
    if others:
        raise ValueError(
            f"{place.parent} already holds {', '.join(sorted(others)[:5])}; build elsewhere "
            "(another --out)"
        )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a building folder; the lock goes with the process."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another run is building in {folder}") from error
        yield


def _job(
    request: Request, reader: Reader, folder: Path, origin: dict[str, Any]
) -> tuple[Job, float]:
    """The plan of an earlier run, or a new one; and how many bytes an episode has, about."""
    path = folder / PLAN_NAME
    if path.exists():
        plan = json.loads(path.read_text(encoding="utf-8"))
        check_origin(plan["made_of"], origin, f"{folder} holds a half built dataset")
    else:
        estimate = look(reader, request.rule)
        per_shard = max(1, int(request.shard_mb * 2**20 / estimate.bytes_per_episode))
        plan = {
            "made_of": origin,
            "bytes_per_episode": estimate.bytes_per_episode,
            "form": dataclasses.asdict(estimate.form),
            "shards": cut(reader.episodes_per_part, per_shard),
        }
        write_json(path, plan)
    job = Job(
        spec=request.spec,
        root=request.root,
        places=Places.of(request.root, anywhere=request.outside_root),
        read_limit_s=request.read_limit_s,
        folder=folder,
        name=built.built_name(request.spec),
        form=StandardForm.of_json(plan["form"]),
        rule=request.rule,
        channel_order=request.rule.channel_order(reader.spec),
        shards=tuple(tuple(Piece(*piece) for piece in shard) for shard in plan["shards"]),
    )
    return job, plan["bytes_per_episode"]


def _write(
    request: Request, reader: Reader, job: Job, bytes_per_episode: float, show: Show
) -> list[ShardRecord]:
    """Write what is missing; gives the records of all shards."""
    for stale in (job.folder / UNFINISHED).iterdir():
        stale.unlink()
    records = {n: r for n in range(len(job.shards)) if (r := read_record(job, n)) is not None}
    missing = [number for number in range(len(job.shards)) if number not in records]
    total = sum(reader.episodes_per_part)
    good = sum(record.episodes for record in records.values())
    done = sum(piece.end - piece.first for number in records for piece in job.shards[number])
    _check_room(request.out, (total - done) * bytes_per_episode)
    faults = Faults(request.max_bad_episodes)
    for record in records.values():
        for kind, episodes in record.bad_episodes.items():
            for episode in episodes:
                faults.add(BadEpisodeError(request.spec.name, episode, kind, "in an earlier run"))
    show(done, total, good)
    stream = events(job, tasks(job.shards, missing), reader=reader, workers=request.workers)
    with contextlib.closing(stream):
        for event in stream:
            if isinstance(event, ShardDone):
                records[event.shard] = event.record
                continue
            bad = isinstance(event, BadEpisodeError)
            if bad:
                faults.add(event)
            done, good = done + 1, good + (not bad)
            show(done, total, good)
    return [records[number] for number in range(len(job.shards))]


def _check_room(out: Path, needed: float) -> None:
    free = shutil.disk_usage(out).free
    if needed * DISK_RESERVE > free:
        raise ValueError(
            f"{out} has {free / 2**30:.1f} GiB free, about {needed * DISK_RESERVE / 2**30:.1f} GiB "
            "are needed; smaller images (--image_size) or lossy ones (--quality) take less"
        )
