"""Policies as programs that run without this library: written here, run by one file beside them.

`program.write_program` writes a folder; `standalone` is the file that acts from it.
"""
