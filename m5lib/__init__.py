"""m5lib: SCALE (M5Product, CVPR 2022) as a thin library that the notebooks import.

Letters used in every shape annotation of the library:

====== =======================================================================
B      products in a batch
N      products in a catalogue, or in one side of a retrieval
M      modalities, in the order of :data:`m5lib.modalities.MODALITIES`
L      tokens of one stream, its summary token first; padded
D      width of the model
F      width of one modality's features (an extractor's output)
V      size of the vocabulary
S      masked positions of one stream in a batch
P      pairs of modalities, ``M (M - 1) / 2``
C      classes
E H    width of an embedding or a projection; of the classifier's hidden vector
K      tokens that are read; candidates of a contrast; classes of a region
Q G R  queries, gallery products, ranks
====== =======================================================================

Masks are boolean and say what is *there*: ``valid[b, l]`` is True where token ``l`` of product
``b`` is a real token.

torchvision, torchaudio, PyAV, lmdb, ijson, captum, umap-learn and papermill are imported by the
functions that use them; importing any module of :mod:`m5lib` needs none of them.
"""

import os
from pathlib import Path

__version__ = "0.1.0"

ROOT = Path(__file__).resolve().parents[1]


def home(*parts: str) -> Path:
    """A path below the folder for outputs: ``M5_HOME``, or the checkout of the library."""
    return Path(os.environ.get("M5_HOME", ROOT)).joinpath(*parts)
