import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from m5lib.evaluation import metrics
from m5lib.evaluation.metrics import rank

WHOLE = (10**6, 10**6)  # one block: the plain path


def slow_rank(queries, gallery, k, query_ids=None, gallery_ids=None, cosine=True):
    """Every pair by itself, in float64, and a sort."""
    lists = []
    for q, vector in enumerate(queries.astype(np.float64)):
        scores = []
        for g, other in enumerate(gallery.astype(np.float64)):
            if query_ids is not None and query_ids[q] == gallery_ids[g]:
                continue
            length = np.sqrt((vector * vector).sum() or 1.0) * np.sqrt((other * other).sum() or 1.0)
            scores.append((-(vector * other).sum() / (length if cosine else 1.0), g))
        best = [g for _, g in sorted(scores)[:k]]
        lists.append(best + [-1] * (k - len(best)))
    return np.array(lists).reshape(len(queries), k)


@pytest.mark.parametrize("k", [3, 12, 20])
def test_ranking_is_exact_and_never_returns_the_query(k):
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(9, 4)), rng.normal(size=(12, 4))
    gallery[3] = queries[2]
    query_ids, gallery_ids = np.arange(9).astype(object), (100 + np.arange(12)).astype(object)
    gallery_ids[3] = query_ids[2]
    fast = rank(queries, gallery, k, query_ids, gallery_ids, block=(4, 5))
    assert (fast == slow_rank(queries, gallery, k, query_ids, gallery_ids)).all()
    assert 3 not in fast[2] and fast[2, 0] != -1
    same = rank(
        sparse.csr_matrix(queries),
        sparse.csr_matrix(gallery),
        k,
        query_ids,
        gallery_ids,
        block=(4, 5),
    )
    assert (same == fast).all()


def test_ties_go_to_the_lower_row_also_at_the_edge():
    gallery = np.array([[1.0, 0], [0, 1], [1, 0], [1, 0], [1, 0]])
    for block in (WHOLE, (1, 1), (1, 2), (1, 3)):
        assert rank(np.array([[1.0, 0]]), gallery, 3, block=block)[0].tolist() == [0, 2, 3]


def test_inner_product_is_not_cosine():
    gallery = np.array([[10.0, 9], [1, 0]])
    assert rank(np.array([[1.0, 0]]), gallery, 1, cosine=False)[0, 0] == 0
    assert rank(np.array([[1.0, 0]]), gallery, 1)[0, 0] == 1


@st.composite
def cases(draw):
    """Small whole numbers, so that there are ties, zero vectors and copies; ids that are shared now
    and then."""
    queries, size, width = (
        draw(st.integers(1, 7)),
        draw(st.integers(1, 25)),
        draw(st.integers(1, 4)),
    )
    rng, values = (
        np.random.default_rng(draw(st.integers(0, 2**32))),
        draw(st.sampled_from([1, 2, 5])),
    )
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    sides = [rng.integers(-values, values + 1, (n, width)).astype(dtype) for n in (queries, size)]
    ids = [
        rng.integers(0, draw(st.sampled_from([3, 30, 10**6])), n).astype(str).astype(object)
        for n in (queries, size)
    ]
    block = draw(st.tuples(st.integers(1, 9), st.integers(1, 30)))
    return (
        *sides,
        draw(st.integers(1, 30)),
        *(ids if draw(st.booleans()) else (None, None)),
        draw(st.booleans()),
        block,
    )


@settings(max_examples=100)
@given(cases())
def test_any_ranking_equals_the_sort_of_all_pairs(case):
    queries, gallery, k, query_ids, gallery_ids, cosine, block = case
    expected = slow_rank(queries, gallery, k, query_ids, gallery_ids, cosine)
    assert (
        rank(queries, gallery, k, query_ids, gallery_ids, cosine, block=block) == expected
    ).all()
    if (
        queries.dtype != np.float16 and not cosine
    ):  # scipy has no halves; its lengths are rounded otherwise
        sides = (sparse.csr_matrix(queries), sparse.csr_matrix(gallery))
        assert (rank(*sides, k, query_ids, gallery_ids, cosine, block=block) == expected).all()
    some = np.random.default_rng(0).permutation(len(gallery))[: len(gallery) // 2 + 1]
    ids = None if gallery_ids is None else gallery_ids[some]
    expected = slow_rank(queries, gallery[some], k, query_ids, ids, cosine)
    assert (rank(queries, gallery, k, query_ids, ids, cosine, some, block) == expected).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("block", [(7, 13), (1, 301), (64, 100), (3, 5000)])
def test_blocks_equal_one_block(block, dtype):
    """Real numbers at the width of real vectors, where products of one pair differ from block to
    block in the last bits."""
    rng = np.random.default_rng(0)
    gallery = rng.normal(size=(700, 97)).astype(dtype)
    gallery[100:400:3] = gallery[5]  # copies on both sides of every border
    gallery[690:] = 0
    queries = np.concatenate(
        [
            gallery[::37] + rng.normal(size=gallery[::37].shape).astype(dtype) / 4,
            gallery[4:7],
            gallery[-1:],
        ]
    )
    query_ids, gallery_ids = (
        np.array([f"q{n}" for n in range(len(queries))], object),
        np.arange(700).astype(str).astype(object),
    )
    gallery_ids[[5, 100, 650]] = query_ids[[0, 20, 3]]
    for cosine in (True, False):
        one = rank(queries, gallery, 25, query_ids, gallery_ids, cosine, block=WHOLE)
        assert (
            rank(queries, gallery, 25, query_ids, gallery_ids, cosine, block=block) == one
        ).all()
        if block == (7, 13):
            assert (one == slow_rank(queries, gallery, 25, query_ids, gallery_ids, cosine)).all()


def test_a_gallery_that_gets_better_and_better_and_one_of_copies():
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(5, 8)).astype(np.float32)
    rising = np.linspace(-1, 1, 400, dtype=np.float32)[:, None] * queries.mean(
        0
    ) + 0.01 * rng.normal(size=(400, 8)).astype(np.float32)
    for gallery in (rising, np.repeat(rising[:4], 100, 0), np.zeros_like(rising)):
        for cosine in (True, False):
            assert (
                rank(queries, gallery, 6, cosine=cosine, block=(2, 50))
                == slow_rank(queries, gallery, 6, cosine=cosine)
            ).all()


def test_coarse_products_change_nothing(monkeypatch):
    """Quick scores that are off by nearly as much as their bound allows for TF32."""
    rng = np.random.default_rng(0)
    queries, gallery = (rng.normal(size=(n, 16)).astype(np.float32) for n in (20, 300))
    expected, quick = slow_rank(queries, gallery, 10), metrics._quick

    def coarse(asked, offered):
        scores, error = quick(asked, offered)
        noise = (
            2 * torch.rand(scores.shape, generator=torch.Generator().manual_seed(len(scores))) - 1
        )
        assert 0.01 < error[0] < 0.05
        return scores + 0.95 * noise * torch.from_numpy(error[:, None]).float(), error

    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    monkeypatch.setattr(metrics, "_quick", coarse)
    for block in (WHOLE, (8, 50)):
        assert (rank(queries, gallery, 10, block=block) == expected).all()


def test_columns_side_by_side_in_memory_change_nothing():
    gallery = np.random.default_rng(0).normal(size=(400, 300)).astype(np.float32)
    gallery[7::40] = gallery[3]
    turned = np.asfortranarray(gallery)
    expected = rank(gallery[:5], gallery, 12, block=WHOLE)
    assert (rank(turned[:5], turned, 12, block=(2, 1)) == expected).all() and (
        rank(turned[:5], turned, 12) == expected
    ).all()


def test_a_memory_map_of_halves_is_read_in_blocks(tmp_path):
    rng = np.random.default_rng(0)
    gallery = np.memmap(tmp_path / "gallery", np.float16, "w+", shape=(500, 32))
    gallery[:] = rng.normal(size=gallery.shape)
    queries = rng.normal(size=(6, 32)).astype(np.float32)
    assert (
        rank(queries, gallery, 9, block=(4, 64)) == slow_rank(queries, np.asarray(gallery), 9)
    ).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_no_numbers_are_refused(value):
    gallery = np.ones((5, 3), np.float32)
    gallery[4, 1] = value
    with pytest.raises(ValueError, match="gallery vector 4 holds a value that is not finite"):
        rank(np.ones((1, 3), np.float32), gallery, 2, block=(1, 3))
    with pytest.raises(ValueError, match="query vector 4"):
        rank(gallery, np.ones((1, 3), np.float32), 2, block=(3, 3))


def test_nothing_to_ask_and_nothing_to_find():
    empty, some = np.zeros((0, 3)), np.ones((2, 3))
    assert rank(empty, some, 4).shape == (0, 4) and (rank(some, empty, 4) == -1).all()
