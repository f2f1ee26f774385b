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

setup(
  name="dmfnet_jax",
  version=VERSION,
  description="DM-FNet in JAX/Flax: diffusion-trained fusion of multimodal medical images",
  long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
  long_description_content_type="text/markdown",
  python_requires=">=3.11",
  packages=[*find_packages(include=["dmfnet_jax", "dmfnet_jax.*"]), *CONFIGS],
  package_dir=CONFIGS,
  package_data={
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
    "nilearn>=0.12",  # carries the ICBM152 templates of the embedded dataset
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.30",
    "pillow>=11",
    "pydicom>=3.0",
    "safetensors>=0.6",
    "scipy>=1.14",
    "tensorboard>=2.19",  # clu.metric_writers imports it; TensorFlow no longer brings it
    # TensorFlow prepares datasets and writes TensorBoard files; nothing else imports it.
    "tensorflow-cpu>=2.19; platform_system == 'Linux' and platform_machine == 'x86_64'",
    "tensorflow>=2.19; platform_system != 'Linux' or platform_machine != 'x86_64'",
    "tensorflow-datasets>=4.9.9",
    "tqdm>=4.66",
  ],
  extras_require={
    "test": [
      "gradio>=6.31",  # the page of `dmfnet serve`
      "jax2onnx>=0.17",  # with onnxruntime: `dmfnet export --format onnx` and its parity
      "mypy>=1.15",
      "onnxruntime>=1.22",
      "pytest>=8.3",
      "ruff>=0.14",
      "scikit-image>=0.25",  # the oracle of the metrics
      "selenium>=4.30",  # report and page in a real browser, where Chromium is installed
    ],
    "docs": ["mkdocs-material>=9.7", "mkdocstrings[python]>=1.0"],  # `make docs`
    "onnx": ["jax2onnx>=0.17"],  # `dmfnet export --format onnx`
    "peers": ["onnxruntime>=1.22", "openvino>=2025.0", "torch>=2.6"],  # bench_peers.py
    "torch": ["torch>=2.6"],
    "dicom": ["python-gdcm>=3.0"],  # decodes JPEG Lossless and JPEG-LS
    "serve": ["gradio>=6.31"],
    "cuda": ["jax[cuda12]>=0.10"],
    "tpu": ["jax[tpu]>=0.10"],
    "preflight": ["libtpu"],  # compiles for TPUs on a machine that has none
  },
)
