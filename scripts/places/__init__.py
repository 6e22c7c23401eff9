"""Places that a user gives: a path of this machine, or one in a bucket (``gs://``).

`files` reads and writes single files of either. `workdir` is a folder that a command works in, with
files on this machine that are copied into a bucket.
"""
