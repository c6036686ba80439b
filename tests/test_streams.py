import numpy as np
import pytest
import torch
from conftest import FewWords

from m5lib import streams
from m5lib.catalogue import Catalogue, DataError, Product
from m5lib.masking import mask
from m5lib.modalities import MODALITIES
from m5lib.models.words import train_tokenizer


def test_streams_start_with_a_summary_and_keep_to_their_limits(stream_set):
    batch = stream_set.batch(range(40))
    tokenizer = stream_set.tokenizer
    assert tuple(batch.streams) == ("image", "text", "table")
    for name, stream in batch.streams.items():
        assert stream.valid[:, 0].all() and stream.valid.shape[1] <= MODALITIES[name].max_tokens + 1
    assert (batch.streams["text"].tokens[:, 0] == tokenizer.cls_token_id).all()
    image = batch.streams["image"]
    torch.testing.assert_close(image.tokens[:, 0], image.tokens[:, 1:].mean(1))
    assert image.boxes[0, 0].tolist() == [0, 0, 1, 1, 1] and image.tokens.shape[1:] == (15, 176)


def test_a_long_cell_is_cut_and_absent_words_are_absent():
    long = Product("1", {"table": (("story", "word " * 10_000), ("size", "9"))})
    none = Product("2", {"text": "just a title"})
    catalogue = Catalogue("c", (long, none))
    batch = streams.Streams(catalogue, {}, train_tokenizer(catalogue, 100)).batch([0, 1])
    assert batch.streams["table"].tokens.shape == (2, 64)
    assert batch.presence.tolist() == [[False, True], [True, False]]
    assert (batch.streams["table"].entity[0, 1:-1] <= 1).all() and batch.streams["table"].entity[
        0, -1
    ] == -1


def test_a_title_without_letters_of_the_vocabulary_is_still_there():
    catalogue = Catalogue(
        "c",
        (Product("1", {"text": "abc"}, split="train"), Product("2", {"text": "ж"}, split="query")),
    )
    batch = streams.Streams(catalogue, {}, train_tokenizer(catalogue, 100)).batch([1])
    assert batch.streams["text"].valid.sum() == 3  # [CLS] [UNK] [SEP]


def test_the_same_words_give_the_same_vocabulary(catalogue):
    one, two = (train_tokenizer(catalogue, 400).get_vocab() for _ in range(2))
    assert one == two and len(one) <= 400 and "watch" in one
    assert train_tokenizer(
        Catalogue("zh", (Product("1", {"text": "安吉白茶 安吉"}),)), 50
    ).tokenize("白茶") == ["白", "茶"]


def test_any_transformers_tokenizer_by_path(catalogue, tmp_path):
    train_tokenizer(catalogue, 300).save_pretrained(tmp_path)
    loaded = streams.load_tokenizer(tmp_path)
    assert loaded.tokenize("Acme Watch") == train_tokenizer(catalogue, 300).tokenize("Acme Watch")
    assert loaded.mask_token_id == 4
    loaded.mask_token = None
    loaded.save_pretrained(tmp_path / "unmasked")
    with pytest.raises(ValueError, match=r"unmasked: \['mask_token_id'\] missing; masked word"):
        streams.load_tokenizer(tmp_path / "unmasked")
    with pytest.raises(ValueError, match=r"tokenizer .*/none: .*; give a folder") as refused:
        streams.load_tokenizer(tmp_path / "none")
    assert "\n" not in str(refused.value)


def test_a_modality_that_the_catalogue_lacks_is_an_error(stream_set):
    with pytest.raises(ValueError, match=r"has no \['video'\]"):
        streams.Streams(
            stream_set.catalogue, stream_set.features, stream_set.tokenizer, ["text", "video"]
        )


def test_a_batch_does_not_depend_on_its_neighbours(stream_set):
    alone, together = stream_set.batch([3]), stream_set.batch([3, 4, 5])
    for name, stream in alone.streams.items():
        length = stream.tokens.shape[1]
        torch.testing.assert_close(together.streams[name].tokens[:1, :length], stream.tokens)
        assert not together.streams[name].valid[0, length:].any()


# --- masking
# ------------------------------------------------------------------------------------------------


def masked(batch, seed=0, **settings):
    return mask(batch, FewWords(), torch.Generator().manual_seed(seed), **settings)


def test_fifteen_percent_of_real_tokens_are_hidden(five_batch):
    batch = five_batch(products=60)
    hidden, possible = dict.fromkeys(batch.streams, 0), {}
    for seed in range(30):
        _, targets = masked(batch, seed)
        for name, target in targets.items():
            hidden[name] += len(target.token)
            stream = batch.streams[name]
            assert stream.valid[target.product, target.token].all() and (target.token > 0).all()
    for name, stream in batch.streams.items():
        there = stream.entity >= 0 if stream.entity is not None else stream.valid[:, 1:]
        possible[name] = int(there.sum()) * 30
        expected = (
            0.075 if MODALITIES[name].hides == "entity" else 0.15
        )  # half of a chosen pair is hidden
        assert abs(hidden[name] / possible[name] - expected) < 0.02, name


def test_mlm_is_80_10_10(five_batch):
    batch = five_batch(products=60)
    before = batch.streams["text"].tokens
    counts = np.zeros(3)
    for seed in range(40):
        after, targets = masked(batch, seed)
        where = targets["text"].product, targets["text"].token
        new = after.streams["text"].tokens[where]
        assert (targets["text"].value == before[where]).all()
        counts += [
            (new == 4).sum(),
            ((new != 4) & (new != before[where])).sum(),
            (new == before[where]).sum(),
        ]
    share = counts / counts.sum()
    assert abs(share[0] - 0.8) < 0.03 and abs(share[1] - 0.1) < 0.03 and abs(share[2] - 0.1) < 0.03


def test_mem_hides_whole_properties_or_whole_values(five_batch):
    batch = five_batch()
    sides = [0, 0]
    for seed in range(300):
        after, targets = masked(batch, seed)
        stream, changed = batch.streams["table"], after.streams["table"].tokens == 4
        for b in range(len(changed)):
            entities = set(stream.entity[b][changed[b]].tolist())
            for entity in entities:
                assert changed[b][stream.entity[b] == entity].all()  # whole
                assert entity ^ 1 not in entities  # never both sides of a pair
                sides[entity % 2] += int(
                    (stream.entity[b] == (entity ^ 1)).any()
                )  # where the pair has both sides
    assert 0.4 < sides[0] / sum(sides) < 0.6
    single = [len(masked(batch, s, hides={"table": "token"})[1]["table"].token) for s in range(60)]
    assert abs(np.mean(single) / int((stream.entity >= 0).sum()) - 0.15) < 0.02  # Table 7's MLM


def test_features_are_hidden_from_the_summary_too(five_batch):
    batch = five_batch()
    after, targets = masked(batch, 3)
    for name in ("image", "video", "audio"):
        target, stream = targets[name], after.streams[name]
        assert len(target.token) and (stream.tokens[target.product, target.token] == 0).all()
        torch.testing.assert_close(
            target.value, batch.streams[name].tokens[target.product, target.token]
        )
        assert not stream.valid.all(), "else padding could count unseen"
        for tokens, valid in zip(stream.tokens, stream.valid, strict=True):
            if valid[0]:
                torch.testing.assert_close(tokens[0], tokens[1:][valid[1:]].mean(0))


def test_any_place_of_a_long_stream_can_be_hidden():
    """Of words by token and by entity, and of features."""
    long, there = 40, torch.ones(4, 40, dtype=torch.bool)
    entity = ((torch.arange(long) - 1) // 2).expand(4, long)
    words = streams.Stream(torch.full((4, long), 9), there, entity=entity)
    features = streams.Stream(torch.ones(4, long, 3), there)
    batch = streams.Batch({"image": features, "text": words, "table": words}, np.arange(4))
    hidden = {name: torch.zeros(long, dtype=torch.bool) for name in batch.streams}
    for seed in range(60):
        for name, stream in masked(batch, seed, rate=0.5)[0].streams.items():
            gone = stream.tokens == (0 if name == "image" else FewWords.mask_token_id)
            hidden[name] |= (gone.all(-1) if gone.ndim == 3 else gone).any(0)
    for name, places in hidden.items():
        assert places[1:].all() and not places[0], name


def test_same_seed_same_mask(five_batch):
    one, two, other = (masked(five_batch(), seed)[1]["text"].token for seed in (5, 5, 6))
    assert one.equal(two) and not (len(one) == len(other) and one.equal(other))


def test_class_probabilities_of_an_extractor_reach_the_loss(extracted, stream_set, tmp_path):
    """VL-BERT's and the released code's other targets: streams -> spec -> masks -> divergence, by
    one training step."""
    from m5lib.model import Model
    from m5lib.models import zoo
    from m5lib.models.zoo import change
    from m5lib.pretrain import Training, pretrain

    catalogue, features = extracted
    probabilities = (
        np.random.default_rng(0)
        .dirichlet(np.ones(4), len(features["image"].values))
        .astype(np.float16)
    )
    found = streams.Streams(
        catalogue,
        {"image": features["image"]._replace(classes=probabilities)},
        stream_set.tokenizer,
    )
    stream = found.batch([3, 5]).streams["image"]
    first, last = features["image"].offsets[3:5]
    assert found.classes == {"image": 4} and stream.classes.shape == (2, stream.tokens.shape[1], 4)
    assert (
        np.allclose(stream.classes[0, 1 : last - first + 1], probabilities[first:last])
        and stream.classes[:, 0].sum() == 0
    )
    spec = change(zoo.vl_bert(width=16, heads=2), (("objective.classes", ("image",)),)).fit(found)
    torch.manual_seed(0)
    model = Model(spec)
    history = pretrain(model, found, Training(steps=1, batch_size=16), tmp_path)
    assert model.heads["image"].features.out_features == 4 and 0 < history[0]["MRP"] < 4


def test_streams_for_a_model_that_reads_more_than_there_is(five, stream_set, catalogue):
    """The others are absent from every batch; with none in common there is nothing to read."""
    titles = streams.Streams(catalogue, {}, stream_set.tokenizer, spec=five)
    assert titles.modalities == ("text", "table")
    batch = titles.batch(range(4))
    assert tuple(batch.streams) == five.modalities
    assert batch.presence.tolist() == [[False, True, True, False, False]] * 4
    image = batch.streams["image"]
    assert image.tokens.shape == (4, 1, dict(five.widths)["image"]) and image.boxes.shape[-1] == 5
    bare = Catalogue("bare", (Product("1", {"video": None}),))
    with pytest.raises(DataError, match=r"bare has V; the model reads I\+T\+Tab\+V\+A"):
        streams.Streams(bare, {}, stream_set.tokenizer, spec=five)
