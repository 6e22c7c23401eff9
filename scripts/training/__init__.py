"""Parts of the train command: `session` runs it in a workdir, `run` makes it out of a config.

Beside them: `initial_model` (its weights), `planning` (for scripts.plan) and `xvla_flags`.
"""
