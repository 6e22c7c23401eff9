"""Readers: one for each storage format, and the files that they rest on.

rlds (with dlataset), built, hdf5, lerobot, scattered and raw each have a class with the interface
of `data.trajectory.Reader`; data/sources.py chooses among them. tfds_folders, hdf5_files,
lerobot_index, lerobot_tasks, meta_files, pickles and videos read files that others wrote, as input
and not as code. libero_hdf5 serves the conversion of LIBERO's demonstrations.
"""
