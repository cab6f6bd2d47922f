"""The CPU kernels' number formats, as common/formats.h computes in them: what weights and tables are stored as."""

from typing import Any, Literal

import numpy as np

Precision = Literal["int8", "bf16", "fp32"]
# In the order of api.h's RedlineFormat.
_DTYPES: dict[Precision, str] = {"int8": "int8", "bf16": "bfloat16", "fp32": "float32"}


def dtype_of(precision: Precision) -> np.dtype[Any]:
    import ml_dtypes  # noqa: F401  by it numpy knows bfloat16

    return np.dtype(_DTYPES[precision])


def precision_of(dtype: np.dtype[Any]) -> Precision:
    """Raises ValueError where no format has this dtype."""
    for precision, name in _DTYPES.items():
        if dtype.name == name:
            return precision
    raise ValueError(f"numbers of {dtype}, wanted {', '.join(_DTYPES.values())}")


def format_code(dtype: np.dtype[Any]) -> int:
    """api.h's RedlineFormat."""
    return list(_DTYPES).index(precision_of(dtype))
