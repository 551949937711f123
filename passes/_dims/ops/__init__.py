"""Relations between the axes of inputs and outputs, one file a family of ops."""

from importlib import import_module
from pkgutil import iter_modules


def enter_rules() -> None:
    """Import every family, which enters its rules into the table."""
    for family in iter_modules(__path__):
        import_module(f"{__name__}.{family.name}")
