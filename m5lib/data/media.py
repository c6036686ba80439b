"""Feature extraction over a catalogue: media files in, arrays of feature vectors out.

An extractor (:mod:`m5lib.data.extractors`) turns one file into one array. What could not be decoded
is taken out of the catalogue and listed, never replaced by zeros (the paper and the released code
put zeros, section 4.1). :func:`extract` keeps the features in memory,
:func:`m5lib.data.store.extract` does the same into files.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from m5lib.catalogue import Catalogue, MediaFile, Product, Skip
from m5lib.data.decoding import MediaError, open_image, probe
from m5lib.data.extractors import PLAIN, Crops, Features, Pixels, described
from m5lib.modalities import MODALITIES
from m5lib.streams import Ragged

# What most callers need besides, in one place.
__all__ = [
    "PLAIN",
    "Crops",
    "Features",
    "MediaError",
    "Pixels",
    "Ragged",
    "extract",
    "features_of",
    "in_parallel",
    "open_image",
    "prepared",
    "probe",
    "with_sound",
]


def _stack(found: list[Features | None], extractor) -> Ragged:
    lengths = [0 if features is None else len(features.values) for features in found]
    there = [features for features in found if features is not None]
    boxes = (
        np.concatenate([f.boxes for f in there]).astype(np.float16)
        if there[0].boxes is not None
        else None
    )
    values = np.concatenate([f.values for f in there]).astype(np.float16)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Ragged(values, offsets, boxes, settings=described(extractor))


def features_of(
    extractor: Callable[[MediaFile], Features], product: Product, name: str
) -> Features | Skip:
    """Features of one content of a product, or why there are none. Checks shape and numbers: what
    goes on is (L, F), finite."""
    try:
        values, boxes = extractor(product.contents[name])
        if values.ndim != 2 or not len(values) or values.shape[1] != extractor.width:
            raise MediaError(
                f"features of shape {values.shape}, expected (at least 1, {extractor.width})"
            )
        if not np.isfinite(values.astype(np.float16)).all() or (
            boxes is not None and not np.isfinite(boxes).all()
        ):
            raise MediaError("features that are not finite in half precision")
        return Features(values, boxes)
    except MediaError as error:
        return Skip(product.id, name, str(error))
    except OSError as error:
        return Skip(product.id, name, f"{UNREADABLE}: {error.strerror or error}")


#: How the reason begins where not the file's content was at fault: it may be there the next time.
UNREADABLE = "cannot be read"


def in_parallel(work: Callable, items: Iterable, workers: int | None = None) -> Iterator:
    """``work`` of each item, in order, on ``workers`` threads (default: one per core), with a
    bounded number under way.

    Threads, not processes: FFmpeg, Pillow and torch let go of the interpreter while they work,
    threads need neither a main guard nor a second import of torch, and on two cores they are as
    fast (``benchmarks/extractors.json``). torch uses one thread in each.
    """
    import torch
    from joblib import (
        cpu_count,
    )  # knows containers, affinity and what a sweep allots to each of its runs

    workers, threads = workers or cpu_count(), torch.get_num_threads()
    waiting: deque = deque()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= 8 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        torch.set_num_threads(threads)


def with_sound(catalogue: Catalogue, workers: int | None = None) -> Catalogue:
    """The catalogue with the sound of its videos: a product without a sound file whose video has a
    sound track gets that video as its audio content (the paper cuts all of its audio from the
    video, section 3).

    A video without a sound track changes nothing: the product has no audio. One that cannot be
    opened is left to the video's extractor, which lists it. Which modality lies inside which is in
    the table (``Modality.inside``).
    """
    products = list(catalogue.products)
    for name, row in MODALITIES.items():
        here = [
            n for n, p in enumerate(products) if row.inside in p.contents and name not in p.contents
        ]

        def holds(n: int, name=name, row=row) -> bool:
            try:
                return getattr(probe(products[n].contents[row.inside]), name) is not None
            except (MediaError, OSError):
                return False

        for n, there in zip(here, in_parallel(holds, here, workers), strict=True):
            if there:
                contents = {**products[n].contents, name: products[n].contents[row.inside]}
                products[n] = replace(
                    products[n],
                    contents={key: contents[key] for key in MODALITIES if key in contents},
                )
    return (
        replace(catalogue, products=tuple(products))
        if products != list(catalogue.products)
        else catalogue
    )


def extract(
    catalogue: Catalogue, extractors: Mapping[str, object] = PLAIN, workers: int | None = None
) -> tuple[Catalogue, dict[str, Ragged]]:
    """Features, in memory, of every feature modality that the catalogue has and that has an
    extractor.

    Args:
        extractors: modality -> extractor, by default :data:`m5lib.data.extractors.PLAIN`. With one
            for a modality that lies inside another (sound in video), products get it from there
            (:func:`with_sound`).

    Returns:
        the catalogue without what could not be decoded (see
        :meth:`~m5lib.catalogue.Catalogue.without`), and for each modality a :class:`Ragged` in the
        order of that catalogue.
    """
    catalogue, extractors = prepared(catalogue, extractors, workers)
    found: dict[str, dict[str, Features]] = {}
    broken: list[Skip] = []
    for name, extractor in extractors.items():
        products = [product for product in catalogue.products if name in product.contents]
        results = in_parallel(
            lambda p, e=extractor, n=name: features_of(e, p, n), products, workers
        )
        results = list(tqdm(results, f"{name} features", len(products), unit=" files"))
        broken += [result for result in results if isinstance(result, Skip)]
        found[name] = {
            p.id: r for p, r in zip(products, results, strict=True) if not isinstance(r, Skip)
        }
    clean = catalogue.without(broken) if broken else catalogue
    return clean, {
        name: _stack([by_id.get(i) for i in clean.ids], extractors[name])
        for name, by_id in found.items()
        if by_id
    }


def prepared(
    catalogue: Catalogue, extractors: Mapping, workers: int | None = None
) -> tuple[Catalogue, dict]:
    """The catalogue with what lies inside other files, and the extractors that it needs, in the
    table's order."""
    if any(
        MODALITIES[name].inside and getattr(extractor, "decodes", True)
        for name, extractor in extractors.items()
    ):
        catalogue = with_sound(catalogue, workers)
    wanted = [
        name
        for name in catalogue.modalities
        if MODALITIES[name].kind == "features" and name in extractors
    ]
    return catalogue, {name: extractors[name] for name in wanted}
