"""Files of checkpoints: every layout, read and written tensor by tensor, and checked before use.

``pretrained.py`` is the door for other rooms; they also use

* ``names``: PyTorch name <-> leaf of the parameter tree; ``torch_tensors`` converts by it,
* ``safetensors_files`` (``TensorFiles``, ``StoredLeaf``) and ``torch_bin``: tensors on disk,
* ``hf_folder`` (``Pretrained``), ``lerobot`` with its pipelines and export, ``peft``: the layouts
  of PyTorch users,
* ``run_folder`` and ``orbax``: the steps of a run,
* ``accounting`` and ``fingerprints``: what is wrong with tensors, and which of them are equal,
* ``relabel``: another action space on the head; ``folders``: complete or not at all.
"""
