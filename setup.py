"""The project's metadata. Tool settings are in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
INIT = (ROOT / "mlx_server" / "__init__.py").read_text("utf-8")
VERSION = re.search(r'^__version__ = "([^"]+)"$', INIT, re.MULTILINE).group(1)

setup(
    name="mlx_server",
    version=VERSION,
    description="One server for language models on MLX: OpenAI's, llama.cpp's and MLC's APIs",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author="mlx_server contributors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["mlx_server", "mlx_server.*"]),
    package_data={
        "mlx_server.demo": ["README.md", "chat_template.jinja", "corpus/*.txt", "model/*"],
        "mlx_server.server": ["web/**"],
    },
    entry_points={"console_scripts": ["mlx_server = mlx_server.cli:main"]},
    # Why each is needed is written in CONTRIBUTING.md. mlx-lm asks for mlx on macOS only.
    install_requires=[
        'mlx>=0.32.2,<0.33; sys_platform == "darwin"',
        'mlx[cpu]>=0.32.2,<0.33; sys_platform == "linux"',
        "mlx-lm>=0.32.2,<0.33",
        "transformers>=5.7,<6",
        "huggingface-hub>=1.31,<3",
        "tokenizers>=0.22,<1",
        "jinja2>=3.1,<4",
        "llguidance>=1.9,<2",
        "numpy>=1.26,<3",
        "pydantic>=2.10,<3",
        "prometheus-client>=0.20,<1",
        "shtab>=1.7,<2",
        "swagger-ui-bundle>=1.1,<2",
    ],
    extras_require={
        "cuda": ['mlx[cuda13]>=0.32.2,<0.33; sys_platform == "linux"'],
        "embeddings": ["mlx-embeddings>=0.1,<0.2"],
        "bench": ["matplotlib>=3.8"],
        "test": [
            "gguf>=0.17",
            "hypothesis>=6",
            "jsonschema>=4.18",
            "mlx-embeddings>=0.1,<0.2",
            "mypy>=1.18,<3",
            "openai>=2",
            "playwright>=1.50",
            "pre-commit>=4",
            "pytest>=8",
            "requests>=2.31",
            "ruff>=0.14",
            "schemathesis>=4,<5",
            "setuptools>=77",
            "trustme>=1",
        ],
    },
    classifiers=[
        "Environment :: Console",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
    ],
)
