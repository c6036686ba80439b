import hashlib

import numpy as np
import pytest

from m5lib import shop
from m5lib.data import DataError


def pixels(catalogue):
    return hashlib.sha256(b"".join(p.contents["image"].read() for p in catalogue.products)).hexdigest()


def test_same_seed_same_shop(tmp_path):
    one, two, other = (shop.make(60, seed, tmp_path / name) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert one.fingerprint == two.fingerprint != other.fingerprint and pixels(one) == pixels(two) != pixels(other)
    assert not one.skipped and one.modalities == ("image", "text", "table")


def test_a_shop_killed_midway_is_made_again_whole(tmp_path):
    whole = shop.make(40, 0, tmp_path / "whole")
    (tmp_path / "cut" / "images").mkdir(parents=True)
    (tmp_path / "cut" / "styles.tmp").write_text("id,title\n0,half")
    assert shop.make(40, 0, tmp_path / "cut").fingerprint == whole.fingerprint


def test_categories_have_a_long_tail_and_larger_shops_begin_alike(tmp_path):
    small, large = shop.make(50, 0, tmp_path / "50"), shop.make(300, 0, tmp_path / "300")
    assert list(small.labels) == list(large.labels[:50])
    counts = np.unique(large.labels.astype(str), return_counts=True)[1]
    assert len(counts) == len(shop.CATEGORIES) and counts.max() > 4 * counts.min()
    with pytest.raises(DataError, match="unknown size 'huge'"):
        shop.make("huge")
