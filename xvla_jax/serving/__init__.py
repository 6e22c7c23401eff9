"""The policy server: X-VLA's HTTP protocol and openpi's websocket, on one port.

From the wire to the device: ``access`` (token), ``body`` (limits while reading), ``json_codec`` and
``msgpack_codec`` (bytes to checked values), ``request`` (values to a checked request), ``service``
(what both doors share), ``batcher`` (which requests run together), ``engine`` (the policy).
docs/serving.md describes the protocol.
"""
