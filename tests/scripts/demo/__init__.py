"""Tests of scripts/demo."""
