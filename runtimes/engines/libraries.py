"""Which of the fused kernels' libraries beside a graph is loaded."""

from pathlib import Path

from redline import machine
from redline.errors import MissingError, UsageError
from redline.kernels.build import file_name


def usable() -> list[str]:
    """File names of the libraries that this CPU could run, strongest first."""
    return [file_name(isa) for isa in reversed(machine.ISAS) if not machine.weaker(machine.isa(), isa)]


def needed_library(model: Path, isa: str | None, engine: str = "onnxruntime") -> Path:
    """fused_library of a graph that can't run without one; MissingError where none lies beside it."""
    library = fused_library(model.parent, isa, engine)
    if library is None:
        raise MissingError(f"{model}: no library of fused kernels lies beside it: wanted {' or '.join(usable())}")
    return library


def fused_library(folder: Path, isa: str | None, engine: str = "onnxruntime") -> Path | None:
    """The strongest that this CPU can run, or the one forced.

    Raises:
        UsageError: a forced ISA that doesn't exist.
        MissingError: one that this CPU lacks, or whose library isn't there.
    """
    if isa is None:
        return next((folder / name for name in usable() if (folder / name).is_file()), None)
    if isa not in machine.ISAS:
        raise UsageError(f"{engine}: isa {isa!r} is not one of {', '.join(machine.ISAS)}")
    if machine.weaker(machine.isa(), isa):
        raise MissingError(f"{engine}: isa {isa} was forced, this CPU has {machine.isa()}")
    path = folder / file_name(isa)
    if not path.is_file():
        raise MissingError(f"{engine}: isa {isa} was forced, and {path} is missing")
    return path
