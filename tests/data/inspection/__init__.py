"""Tests of the data doctor."""
