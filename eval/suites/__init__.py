"""Rows of the task table, one module for each family of benchmarks."""
