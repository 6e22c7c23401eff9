"""Self-contained HTML pages, with nothing to load from elsewhere.

`html` has the parts of any page (tables, charts, films), `quickstart` the report that all
evaluation pages share, `evaluation` the page of a receipt.
"""
