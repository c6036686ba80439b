"""Your own products: intake, encoder, index, near-duplicates, reasons."""

from m5lib.search.encode import Encoder
from m5lib.search.index import Index, build

__all__ = ["Encoder", "Index", "build"]
