"""Who is next: address by address, names that were seen before, and a lock held in turns."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xvla_jax.serving.batcher import FairQueue, Turns
from xvla_jax.serving.limits import CROWD, Client, Clients


def queue_of(*items: str) -> FairQueue[str]:
    """Items are address, name and number, one character each."""
    queue: FairQueue[str] = FairQueue(lambda item: Client(item[0], item[1]))
    for item in items:
        queue.push(item)
    return queue


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


def test_clients_of_one_address_take_turns() -> None:
    queue = queue_of("xa1", "xa2", "xa3", "xb1", "xc1", "xb2")
    assert [queue.ahead(Client("x", name)) for name in "acd"] == [6, 5, 3]
    assert queue.remove("xb1")
    assert not queue.remove("xb1")
    assert drained(queue) == ["xa1", "xb2", "xc1", "xa2", "xa3"]


def test_an_address_has_one_turn_however_many_names() -> None:
    queue = queue_of("xa1", "xb1", "xc1", "xd1", "yr1", "yr2")
    assert queue.ahead(Client("y", "r")) == 5
    assert queue.ahead(Client("z", "r")) == 2
    assert drained(queue) == ["xa1", "yr1", "xb1", "yr2", "xc1", "xd1"]


def test_many_names_of_an_address_share_one_turn_beyond_the_sixteenth() -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue(lambda item: Client("x", item[0]))
    for i in range(40):
        queue.push((f"name {i}", i))
    queue.push(("name 0", 40))
    first = [queue.pop()[1] for _ in range(17)]
    assert first == [*range(16), 16]
    assert queue.pop()[1] == 40  # name 0 again, before the rest of the crowd
    assert queue.remove(("name 39", 39))


@pytest.mark.parametrize(
    ("waiting", "client", "victim"),
    [
        (("xa1", "xa2", "xa3", "yb1"), "zc", "xa3"),
        (("xa1", "xb1", "xc1", "yb1"), "yb", "xa1"),  # four names, one address
        (("xa1", "xa2", "xa3", "xb1"), "xb", "xa3"),  # of its own address
        (("xa1", "xa2", "yb1", "yb2"), "xa", None),
        (("xa1", "xa2", "yb1", "yb2"), "yc", "yb2"),
        (("xa1", "yb1"), "xa", None),
        (("xa1", "yb1"), "zc", None),
    ],
)
def test_who_gives_way(waiting: tuple[str, ...], client: str, victim: str | None) -> None:
    assert queue_of(*waiting).victim(Client(client[0], client[1])) == victim


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(["xa", "xb", "xc", "ya", "yb", "za"]), max_size=30))
def test_what_is_ahead_is_what_comes_first(clients: list[str]) -> None:
    for client in ("xa", "yb", "zq"):
        queue = queue_of(*(f"{name}{i}" for i, name in enumerate(clients)))
        # whose turn it was last does not matter: a queue that has served nobody begins in order
        ahead = queue.ahead(Client(client[0], client[1]))
        queue.push(f"{client}!")
        assert drained(queue).index(f"{client}!") <= ahead


def test_a_name_has_a_turn_of_its_own_once_it_was_seen() -> None:
    clients = Clients()
    assert clients.client("x", "") == Client("x", "")
    assert [clients.client("x", f"fresh {i}").name for i in range(100)] == [CROWD] * 100
    assert clients.client("x", "robot").name == CROWD
    assert clients.client("x", "robot").name == clients.client("x", "robot").name != CROWD
    assert clients.client("y", "robot").name == CROWD, "a name belongs to its address"
    assert clients.client("x", CROWD).name == CROWD
    assert clients.client("x", CROWD).name != CROWD, "nobody can take the crowd's own name"
    long = "n" * 10_000
    assert len([clients.client("x", long) for _ in range(2)][1].name) < 100


def test_names_that_were_seen_are_bounded() -> None:
    clients = Clients()
    for i in range(20_000):
        clients.client("x", str(i))
    assert clients.client("x", "19999").name != CROWD
    assert clients.client("x", "0").name == CROWD, "it was forgotten"


def test_turns_are_fair_and_survive_who_leaves() -> None:
    async def main() -> None:
        turns, order = Turns(1), []

        async def hold(name: str) -> None:
            await turns.take(Client(name[0]))
            try:
                order.append(name)
                await asyncio.sleep(0)
            finally:
                turns.give_back()

        await turns.take(Client("first"))
        flood = [asyncio.create_task(hold(f"a{i}")) for i in range(4)]
        robot = asyncio.create_task(hold("b0"))
        await asyncio.sleep(0)
        flood[1].cancel()
        await asyncio.sleep(0)
        turns.give_back()
        flood[0].cancel()  # its turn has come, and it leaves before it knows
        await asyncio.gather(robot, *flood, return_exceptions=True)
        assert order == ["b0", "a2", "a3"]
        await asyncio.wait_for(hold("c0"), 1)

    asyncio.run(main())
