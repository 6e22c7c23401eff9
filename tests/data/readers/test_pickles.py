"""Pickles from others: arrays come out as they went in, and nothing that they ask for is done."""

import collections
import os
import pickle
import random
import struct
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.readers.pickles import Inert, load_pickle

ROOT = Path(__file__).resolve().parents[3]
MUTANTS = 2000
LIMIT_S = 120


def arrays():
    """One of each kind that is read."""
    shared = np.arange(3.0)
    return {
        "f8": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "big endian": np.arange(4, dtype=">f4"),
        "bool": np.array([True, False]),
        "none": np.zeros((0, 7), np.float32),
        "zero-d": np.array(3),
        "texts": np.array(["pick", "up"]),
        "bytes": np.array([b"a", b"bc"]),
        "objects": np.array([1, "a", None, shared], object),
        "scalar": np.float64(3.5),
        "number": np.int32(-7),
        "plain": [1, 2.5, "x", b"y", None, (True, {"k": [shared, shared]})],
        "ordered": collections.OrderedDict(a=np.arange(2)),
    }


def written(folder, content):
    path = folder / "a.pkl"
    path.write_bytes(content)
    return path


def equal(value, expected):
    if isinstance(expected, np.ndarray) and expected.dtype != object:
        assert value.dtype == expected.dtype
        assert value.shape == expected.shape
        assert value.flags.writeable
        np.testing.assert_array_equal(value, expected)
    elif isinstance(expected, dict):
        assert list(value) == list(expected)
        for key in expected:
            equal(value[key], expected[key])
    elif isinstance(expected, list | tuple | np.ndarray):
        assert type(value) is type(expected)
        assert len(value) == len(expected)
        for one, other in zip(value, expected, strict=True):
            equal(one, other)
    else:
        assert type(value) is type(expected)
        assert value == expected


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_come_out_as_they_went_in(tmp_path, protocol):
    content = arrays()
    equal(load_pickle(written(tmp_path, pickle.dumps(content, protocol))), content)


def test_shared_parts_stay_shared(tmp_path):
    part = [np.arange(2)]
    content = load_pickle(written(tmp_path, pickle.dumps([part, part])))
    assert content[0] is content[1]
    node = []
    for _ in range(60):  # 2 ** 60 leaves, were they copied
        node = [node, node]
    assert len(load_pickle(written(tmp_path, pickle.dumps(node)))) == 2
    circle: list[Any] = [1]
    circle.append(circle)
    content = load_pickle(written(tmp_path, pickle.dumps(circle)))
    assert content[1] is content


def test_other_objects_are_inert(tmp_path):
    content = load_pickle(written(tmp_path, pickle.dumps({"a": Fraction(1, 2), "b": np.arange(2)})))
    assert isinstance(content["a"], Inert)
    np.testing.assert_array_equal(content["b"], [0, 1])


class Reduced:
    """Pickled as the call that it is given."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


RECONSTRUCT, DTYPE = np.arange(2).__reduce__()[0], np.dtype
FROMBUFFER, SCALAR = np.arange(2).__reduce_ex__(5)[0], np.float64(0).__reduce__()[0]
EMPTY = (np.ndarray, (0,), b"b")
HOSTILE = {
    "S3": Reduced(collections.OrderedDict, (Reduced(np.ndarray, ((1,), "O", b"A" * 8)),)),
    "objects of bytes": Reduced(RECONSTRUCT, EMPTY, (1, (1,), np.dtype("O"), False, b"A" * 8)),
    "too short": Reduced(RECONSTRUCT, EMPTY, (1, (1 << 40,), np.dtype("f8"), False, b"A" * 8)),
    "overflow": Reduced(RECONSTRUCT, EMPTY, (1, (1 << 62, 4), np.dtype("f8"), False, b"")),
    "negative": Reduced(RECONSTRUCT, EMPTY, (1, (-1, -1), np.dtype("f8"), False, b"A" * 8)),
    "many axes": Reduced(RECONSTRUCT, EMPTY, (1, (1,) * 100, np.dtype("u1"), False, b"A")),
    "no type": Reduced(RECONSTRUCT, EMPTY, (1, (1,), "O", False, b"A" * 8)),
    "no state": Reduced(RECONSTRUCT, EMPTY),
    "frombuffer": Reduced(FROMBUFFER, (b"A" * 8, np.dtype("O"), (1,), "C")),
    "scalar": Reduced(SCALAR, (np.dtype("O"), b"A" * 8)),
    "structure": np.zeros(1, [("a", "O"), ("b", "f8")]),
    "code": Reduced(RECONSTRUCT, EMPTY, (1, (1,), Reduced(DTYPE, ("O8, f8",)), False, b"A" * 16)),
    "a wide text": Reduced(
        RECONSTRUCT, EMPTY, (1, (1,), Reduced(DTYPE, ("U999999999",)), False, b"")
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_argument_of_a_pickle_reaches_numpy(tmp_path, name):
    with pytest.raises(ValueError, match="is no pickle of arrays"):
        load_pickle(written(tmp_path, pickle.dumps(HOSTILE[name], 4)))


def test_nothing_is_called(tmp_path):
    mark = tmp_path / "made"
    for call in (os.mkdir, os.system, eval, __import__):
        content = pickle.dumps(Reduced(call, (f"{'touch ' if call is os.system else ''}{mark}",)))
        assert isinstance(load_pickle(written(tmp_path, content)), Inert)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04Nr" + struct.pack("<I", 2**31 - 2) + b".",  # a memo of 32 GiB
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
        b"(" * 10**6,
        b"\x80\x04" + b"]\x94" * 10**5 + b"a" * (10**5 - 1) + b".",  # lists in lists
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff{",
    ],
    ids=["memo", "bytearray", "bytes", "marks", "depth", "empty", "npy", "npy header"],
)
def test_sizes_of_a_pickle_are_not_believed(tmp_path, content):
    with pytest.raises(ValueError, match="is no pickle of arrays"):
        load_pickle(written(tmp_path, content))


def test_a_function_keeps_no_state(tmp_path):
    content = b"\x80\x04c_codecs\nencode\n}\x8c\x01a\x8c\x01bsb."
    with pytest.raises(ValueError, match="a function with a state"):
        load_pickle(written(tmp_path, content))


def mutate(content, rng):
    """A pickle with a few bytes changed, taken out, repeated or swapped."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        place, kind = rng.randrange(len(changed)), rng.randrange(4)
        if kind == 0:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place] = rng.choice(b"RbotcNJK(.}]l\x93\x94\x81\x85\x86\x87\x96h")
        elif kind == 2:
            del changed[place : place + rng.randint(1, 9)]
            changed += b"." * (not changed)
        else:
            other = rng.randrange(len(changed))
            changed[place:place] = changed[other : other + rng.randint(1, 40)]
    return bytes(changed)


def _child(folder, first):
    """Loads the mutants from `first` on; says the number of each before it begins."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "from pathlib import Path\n"
        "from data.readers.pickles import load_pickle\n"
        "paths = sorted(Path(sys.argv[1]).iterdir())\n"
        "for path in paths[int(sys.argv[2]):]:\n"
        "    print(path.name, flush=True)\n"
        "    try: load_pickle(path)\n"
        "    except ValueError: pass\n"
        "print('end')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), str(first)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def test_mutants_crash_nothing(tmp_path):
    rng = random.Random(0)
    seeds = [pickle.dumps(arrays(), protocol) for protocol in range(6)]
    seeds += [pickle.dumps(value, 4) for value in HOSTILE.values()]
    for number in range(MUTANTS):
        (tmp_path / f"{number:05d}").write_bytes(mutate(rng.choice(seeds), rng))
    crashed, first, began = [], 0, time.monotonic()
    while first < MUTANTS and time.monotonic() - began < LIMIT_S:
        run = _child(tmp_path, first)
        last = run.stdout.split()[-1]
        if last == "end":
            break
        crashed.append((last, run.returncode, run.stderr[-300:]))
        first = int(last) + 1
    assert crashed == []
