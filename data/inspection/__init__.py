"""The data doctor: measures opened sources and judges them by a table of checks.

`scan.scan` returns a SourceReport (reports), `checks.examine` its findings; `companion` opens the
arrays recorded beside a row. views, movement, grippers, timing and camera measure; the modules
*_checks hold the rows of the table.
"""
