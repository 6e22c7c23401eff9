"""The policy server: X-VLA's HTTP protocol and openpi's websocket, on one port.

A request passes ``connections`` (what a connection may cost), ``access`` (token, Host), ``app`` or
``websocket`` (the two doors), ``codecs`` (bytes to checked values), ``fields`` and ``request``
(values to an observation), ``batcher`` (which requests run together) and ``engine`` (the policy);
``service`` leads it, ``server`` is the process around it. docs/serving.md describes the protocol.

Others use ``service.Service``, ``engine.PolicyEngine``, ``limits.Limits``, ``server.Door`` and
``server.serve``; benchmarks and tests also the codecs.
"""
