"""Crystal structures from a formula: a language model that writes CIF, constrained by crystallography.

Importing this package imports no more than the version; a name is looked up when it is first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystallm.version import __version__

__all__ = [
    "CIFError",
    "CIFRecord",
    "Crystal",
    "GenerateConfig",
    "Generator",
    "Predictor",
    "__version__",
    "canonicalize",
    "generate",
]

if TYPE_CHECKING:
    from crystallm.cif import CIFError
    from crystallm.crystal import Crystal
    from crystallm.properties.prediction import Predictor
    from crystallm.records import CIFRecord
    from crystallm.sample.generate import GenerateConfig, Generator, generate

_MODULE_OF = {
    "CIFError": "crystallm.cif",
    "CIFRecord": "crystallm.records",
    "Crystal": "crystallm.crystal",
    "GenerateConfig": "crystallm.sample.generate",
    "Generator": "crystallm.sample.generate",
    "Predictor": "crystallm.properties.prediction",
    "generate": "crystallm.sample.generate",
}


def canonicalize(cif: str | Path) -> str:
    """The text that the model reads, of a CIF's text or, given a Path, of the file.

    All descriptions of one crystal give one text. CIFError says why there is none.
    """
    from crystallm import asymmetric_unit, canonical
    from crystallm.cif import CIFError, parse_cif

    crystal, _ = parse_cif(cif.read_bytes() if isinstance(cif, Path) else cif)
    try:
        return canonical.canonicalize(crystal).to_text()
    except asymmetric_unit.CanonicalError as err:
        reason = "bad_cell" if err.reason == "not_representable" else "bad_symmetry"
        raise CIFError(reason, str(err)) from err


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'crystallm' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
