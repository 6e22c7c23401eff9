"""The task table: what each benchmark asks of a policy, one row per task or suite.

`table` has the rows by name (`TASKS`, `task_spec`, `episodes`), `spec` the type of a row and what a
simulator's adapter does, `profiles` the columns of a client. A module per benchmark holds its rows;
only `table` imports those.
"""
