"""Compiled programs between processes: their cache, and programs that are ready ahead of time.

A command calls `program_cache.keep_programs` before it compiles anything.
"""
