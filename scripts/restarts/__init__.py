"""Supervised training: starts a run again after a failure, on the hosts that are left.

`supervisor` holds one host's process and starts it again, `gathering` agrees with the other hosts
on who takes part, `journal` keeps what became of each attempt, and `run_files` reads how far the
run is.
"""
