"""Packaging. `bin/`, `config/` and `resources/` travel inside the wheel as `crystallm/_files/`."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
BUNDLED = ("bin", "config", "resources")
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "crystallm/version.py").read_text(encoding="utf-8"), re.M)


class BuildWithFiles(build_py):
    """Adds the bundled folders; an editable install reads them from the checkout instead."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "crystallm" / "_files"
        shutil.rmtree(target, ignore_errors=True)  # build/ survives between builds: a deleted file must not
        for folder in BUNDLED:
            if (ROOT / folder).is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "*.pyc", ".ipynb_checkpoints")
                shutil.copytree(ROOT / folder, target / folder, ignore=ignore)


HF = ["transformers>=4.56", "huggingface_hub>=0.34"]  # bin/export_hf.py's models in transformers; hf:org/name
GRAPH = ["torch_geometric>=2.5"]
TEST = ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "pandas>=2.1"]
NOTEBOOK = ["nbclient>=0.10", "nbformat>=5.9", "ipykernel>=6.29"]

setup(
    name="crystallm",
    version=VERSION.group(1) if VERSION else "0",
    description="A language model that writes crystal structures as CIF, constrained by crystallography",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    author="crystallm contributors",
    packages=find_packages(include=["crystallm", "crystallm.*", "tokenizer", "tokenizer.*"]),
    package_data={"crystallm": ["py.typed"], "tokenizer": ["py.typed", "README.md", "vocabularies/*.json"]},
    cmdclass={"build_py": BuildWithFiles},
    python_requires=">=3.10",
    install_requires=[
        # the language model: all that training and sampling need
        "torch>=2.4",
        "numpy>=1.26",
        "tiktoken>=0.7",
        "safetensors>=0.4.3",
        "pyyaml>=6.0",
        "tqdm>=4.66",
        # crystals, tables and pictures
        "pymatgen>=2024.8.9",
        "spglib>=2.5",
        "moyopy>=0.4",
        "gemmi>=0.6.5",
        "ase>=3.23",
        "pyarrow>=15",
        "matplotlib>=3.8",
        "scipy>=1.11",
        # the training log; imported only when `wandb` is on
        "wandb>=0.17",
    ],
    extras_require={
        "charge": ["smact>=3.0"],  # charge balance in the checks
        "tables": ["pyxtal>=1.0"],  # bin/make_space_group_tables.py
        "describe": ["robocrys>=0.2.13"],  # Robocrystallographer's descriptions
        "hf": HF,
        "graph": GRAPH,  # the graph network as structure encoder of the property predictor
        "notebook": NOTEBOOK,
        "test": [*TEST, *NOTEBOOK, *HF, *GRAPH, "llguidance>=1.0", "smact>=3.0"],
        "dev": [
            *TEST,
            *NOTEBOOK,
            *HF,
            *GRAPH,
            "llguidance>=1.0",
            "smact>=3.0",
            "ruff",
            "mypy",
            "codespell",
            "pre-commit",
            "pre-commit-hooks",
        ],
    },
    entry_points={
        "console_scripts": [
            "crystallm-train = crystallm.cli:train",
            "crystallm-sample = crystallm.cli:sample",
            "crystallm-evaluate = crystallm.cli:evaluate",
            "crystallm-refine = crystallm.cli:refine",
            "crystallm-predict = crystallm.cli:predict",
            "crystallm-explain = crystallm.cli:explain",
            "crystallm-diffuse = crystallm.cli:diffuse",
            "crystallm-score = crystallm.cli:score",
            "crystallm-prepare = crystallm.cli:prepare",
            "crystallm-download = crystallm.cli:download",
        ]
    },
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Chemistry",
    ],
)
