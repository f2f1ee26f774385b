"""Installs dmfnet_jax. Tools (ruff, mypy, pytest) are configured in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
  r'^__version__ = "(.+)"$', (ROOT / "dmfnet_jax/__init__.py").read_text(), re.MULTILINE
).group(1)

# Recipes live at the top level, where people look for them, and are installed inside the package,
# so that `dmfnet train --config configs/...` and `dmfnet demo` work outside a checkout.
CONFIGS = {"dmfnet_jax.configs": "configs"}

# An index shows the README without the files beside it: no pictures, and only a link's text.
README = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""
DESCRIPTION = re.sub(r"^!\[[^\]]*\]\([^)]*\)\n+", "", README, flags=re.MULTILINE)
DESCRIPTION = re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", DESCRIPTION)

# 1.3 GB that only preparing a dataset and writing TensorBoard files import.
TENSORFLOW = [
  "tensorflow-cpu>=2.19; platform_system == 'Linux' and platform_machine == 'x86_64'",
  "tensorflow>=2.19; platform_system != 'Linux' or platform_machine != 'x86_64'",
]
# clu.metric_writers imports both; TensorFlow no longer brings TensorBoard.
TENSORBOARD = [*TENSORFLOW, "tensorboard>=2.19"]
SERVE = ["gradio>=6.31"]
ONNX = ["jax2onnx>=0.17"]
RAY = ["ray[data]>=2.50,<2.64"]  # 2.64 takes what launch/ray_fuse.py asks of a worker another way
S3 = ["s3fs>=2025.3"]

setup(
  name="dmfnet_jax",
  version=VERSION,
  description="DM-FNet in JAX/Flax: diffusion-trained fusion of multimodal medical images",
  long_description=DESCRIPTION,
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  project_urls={
    "Paper": "https://arxiv.org/abs/2506.15218",
    "Published program": "https://github.com/HeDan-11/DM-FNet",
  },
  keywords=["image fusion", "medical imaging", "diffusion models", "MRI", "PET", "JAX", "Flax"],
  classifiers=[
    "Development Status :: 4 - Beta",
    "Environment :: Console",
    "Intended Audience :: Science/Research",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3",
    "Programming Language :: Python :: 3 :: Only",
    "Programming Language :: Python :: 3.11",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Topic :: Scientific/Engineering :: Image Processing",
    "Topic :: Scientific/Engineering :: Medical Science Apps.",
    "Typing :: Typed",
  ],
  python_requires=">=3.11",
  packages=[*find_packages(include=["dmfnet_jax", "dmfnet_jax.*"]), *CONFIGS],
  package_dir=CONFIGS,
  package_data={
    "dmfnet_jax": ["py.typed"],
    "dmfnet_jax.report": ["assets/*"],
    "dmfnet_jax.weights": ["*.safetensors", "*.md", "*.png"],
  },
  entry_points={"console_scripts": ["dmfnet = dmfnet_jax.cli:main"]},
  install_requires=[
    "absl-py>=2.1",
    "array-record>=0.8",
    "clu>=0.0.12",
    "etils[epath]>=1.12",
    "flax>=0.12",
    "grain>=0.2.12",
    "jax>=0.10",
    "matplotlib>=3.9",
    "ml-collections>=1.1",
    "nibabel>=5.3",
    "nilearn>=0.12",  # carries the ICBM152 templates of the demo and of the embedded dataset
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.30",
    "pillow>=11",
    "pydicom>=3.0",
    "safetensors>=0.6",
    "scipy>=1.14",
    "shtab>=1.7",  # `dmfnet completion`
    "tensorflow-datasets>=4.9.9",  # prepared datasets are read through it, without TensorFlow
    "tqdm>=4.66",
  ],
  extras_require={
    "data": TENSORFLOW,  # `dmfnet data prepare`
    "beam": [*TENSORFLOW, "apache-beam>=2.70"],  # the same in several processes, or on a cluster
    "tensorboard": TENSORBOARD,  # a training's TensorBoard files beside metrics.jsonl
    "serve": SERVE,  # `dmfnet serve`
    "hub": ["huggingface_hub>=0.30"],  # models at hf://OWNER/NAME
    "ray": RAY,  # launch/ray_fuse.py
    "s3": S3,  # s3://
    "gcs": ["gcsfs>=2025.3"],  # gs:// without TensorFlow
    "onnx": ONNX,  # `dmfnet export --format onnx`
    "torch": ["torch>=2.6"],  # `dmfnet convert`
    "dicom": ["python-gdcm>=3.0"],  # decodes JPEG Lossless and JPEG-LS
    "cuda": ["jax[cuda12]>=0.10"],
    "tpu": ["jax[tpu]>=0.10"],
    "preflight": ["libtpu"],  # compiles for TPUs on a machine that has none
    "peers": ["onnxruntime>=1.22", "openvino>=2025.0", "torch>=2.6"],  # bench_peers.py
    "test": [
      *TENSORBOARD,
      *SERVE,
      *ONNX,
      *RAY,
      *S3,
      "flask>=3",
      "flask-cors>=5",  # with moto[s3]: a server that speaks S3
      "apache-beam>=2.70",  # volumes are prepared by it in several processes
      "ipykernel>=6.29",  # with nbclient: the notebook of the guides
      "moto[s3]>=5.1",
      "mypy>=1.15",
      "nbclient>=0.10",
      "onnxruntime>=1.22",  # the parity of an exported ONNX program
      "pytest>=8.3",
      "pytest-xdist>=3.8",  # two workers halve the time of `make test`
      "ruff>=0.14",
      "scikit-image>=0.25",  # the oracle of the metrics
      "selenium>=4.30",  # report and page in a real browser, where Chromium is installed
    ],
    "docs": ["mkdocs-jupyter>=0.25", "mkdocs-material>=9.7", "mkdocstrings[python]>=1.0"],
  },
)
