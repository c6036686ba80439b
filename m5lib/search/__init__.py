"""Your own products: intake, index, reasons."""

from m5lib.search.index import Index, build

__all__ = ["Index", "build"]
