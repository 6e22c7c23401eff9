"""Compiled programs: kept between processes, ready ahead of time, traced as they run.

A command calls `program_cache.keep_programs` before it compiles anything.
"""
