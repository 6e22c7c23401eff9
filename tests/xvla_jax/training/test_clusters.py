"""Processes on known clusters: JAX's own detection, given what each cluster provides."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import jax
import pytest

from configs import debug
from xvla_jax.errors import ConfigError
from xvla_jax.training.multihost import KINDS, DistributedConfig, check_alone, connect

_FILE = Path(__file__).parents[2] / "fixtures/clusters/environments.json"
_CLUSTERS: list[dict[str, Any]] = json.loads(_FILE.read_text())["clusters"]
_BASE: Any = debug.get_config()
_CONFIG = DistributedConfig(**_BASE.distributed.to_dict())
_SCHEDULERS = re.compile("SLURM_|TPU_|MEGASCALE_|OMPI_|KUBERNETES_|JOB_COMPLETION|JAX_COORD")


def _named(name: str) -> dict[str, Any]:
    return next(cluster for cluster in _CLUSTERS if cluster["name"].startswith(name))


@pytest.fixture
def detected(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Address, processes, number and devices that JAX finds when a process connects."""
    connections: list[tuple[Any, ...]] = []
    detect = importlib.import_module("jax._src.clusters").ClusterEnv

    def initialize(**given: Any) -> None:
        connections.append(
            detect.auto_detect_unset_distributed_params(
                *(given.get(name) for name in ("coordinator_address", "num_processes")),
                given.get("process_id"),
                None,
                given["cluster_detection_method"],
                given["initialization_timeout"],
            )
        )
        if connections[-1][0] is None:
            raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    for variable in [name for name in os.environ if _SCHEDULERS.match(name)]:
        monkeypatch.delenv(variable)
    return connections


def _be_on(cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process one of a cluster's."""
    tpu = importlib.import_module("jax._src.clusters.cloud_tpu_cluster")
    for module in (tpu, importlib.import_module("jax._src.clusters.cluster")):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", cluster["tpu"])
    answers = cluster.get("metadata", {})

    def get_metadata(key: str) -> tuple[str, int]:
        return (answers[key], 200) if key in answers else ("not found", 404)

    monkeypatch.setattr(tpu, "get_metadata", get_metadata)
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.1")
    for variable, value in cluster["environ"].items():
        monkeypatch.setenv(variable, value)


@pytest.mark.parametrize("cluster", _CLUSTERS, ids=lambda cluster: cluster["name"])
def test_jax_finds_the_coordinator_and_this_process(
    cluster: dict[str, Any],
    detected: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _be_on(cluster, monkeypatch)
    connect(dataclasses.replace(_CONFIG, kind=cluster["kind"]))
    address, processes, process, devices = detected[0]
    assert (address, processes) == (cluster["address"], cluster["processes"])
    assert process == cluster["process"]
    # JAX gives a process of these clusters one device, whatever the host has
    assert devices == cluster.get("devices")


@pytest.mark.parametrize("cluster", _CLUSTERS, ids=lambda cluster: cluster["name"])
def test_a_process_of_a_cluster_is_not_trained_alone(cluster: dict[str, Any]) -> None:
    if cluster["sign"] is None:  # nothing in the environment: `start` asks JAX for its processes
        check_alone(cluster["environ"])
        return
    kind = cluster["kind"]
    with pytest.raises(ConfigError, match=rf"^{cluster['sign']} is .*distributed\.kind={kind}"):
        check_alone(cluster["environ"])
    assert kind in KINDS


@pytest.mark.parametrize(
    ("name", "gone", "kind", "message"),
    [
        ("SLURM", "SLURM_PROCID", "slurm", "kind is 'slurm', but no such cluster is found"),
        ("GKE, JobSet of one", "TPU_WORKER_HOSTNAMES", "auto", "kind is 'auto', but no such"),
        ("GKE, JobSet of one", "TPU_WORKER_ID", "auto", "kind is 'auto', but no such cluster"),
    ],
)
def test_a_cluster_that_lacks_a_variable_is_no_cluster(
    name: str,
    gone: str,
    kind: str,
    message: str,
    detected: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = _named(name)
    environ = {key: value for key, value in cluster["environ"].items() if key != gone}
    environ.pop("KUBERNETES_SERVICE_HOST", None)  # JAX warns there of a package that it misses
    _be_on(cluster | {"environ": environ}, monkeypatch)
    with pytest.raises(ConfigError, match=message):
        connect(dataclasses.replace(_CONFIG, kind=kind))
