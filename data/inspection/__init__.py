"""The data doctor: measures every episode of a source and judges what it finds."""
