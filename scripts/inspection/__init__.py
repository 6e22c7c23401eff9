"""The data doctor's page, for `scripts.inspect_data`: `render` of an `Inspection`."""
