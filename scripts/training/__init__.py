"""Parts of the train command: `run` (a run out of its config), `initial_model`, `xvla_flags`."""
