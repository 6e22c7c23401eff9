"""The stages of the quickstart, for `scripts.quickstart` and `scripts.report`."""
