"""Graded changes of LIBERO's tasks without new assets: one axis at a time, beside a control arm.

`axes` has the table and the names of disturbed rows, `wording` the other texts. `scene` and
`objects` change a loaded MuJoCo model for one episode; `eval.simulators.libero` calls them.
"""
