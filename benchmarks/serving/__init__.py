"""Measures the policy server: what it adds to the policy, what batching gains, what it withstands.

``python -m benchmarks.serving`` runs all of it; `server_process` and `memory` serve the tests too.
"""
