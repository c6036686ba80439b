import io
import pickle
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from make_media import file_of, tone, write_image, write_sound, write_video
from PIL import Image

from m5lib.catalogue import Catalogue, Product
from m5lib.data import MediaFile, store
from m5lib.data.decoding import MediaError, probe
from m5lib.data.extractors import PLAIN, Crops, Features, Frames
from m5lib.modalities import MODALITIES

# ---- hostile media


@pytest.fixture
def hostile(tmp_path):
    """name -> (contents, how the reason begins or None where it is usable)."""
    good = write_video(tmp_path / "good.mp4", 40, 10, sound=4.0)
    loose = write_video(tmp_path / "loose.mkv", 60, 10)
    wav, mp3 = (
        write_sound(tmp_path / "s.wav", tone(8.0)),
        write_sound(tmp_path / "s.mp3", tone(8.0)),
    )
    jpg = write_image(tmp_path / "i.jpg", size=(300, 200))

    def put(name, data):
        (tmp_path / name).write_bytes(data)
        return file_of(tmp_path / name)

    def cut(path, name, share=0.5):
        data = path.read_bytes()
        return put(name, data[: int(len(data) * share)])

    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{good}\n#EXT-X-ENDLIST\n".encode()
    return {
        "cut mp4": ({"video": cut(good, "cut.mp4")}, "cannot be decoded"),
        "cut mkv": ({"video": cut(loose, "cut.mkv")}, "cut short"),
        "cut wav": ({"audio": cut(wav, "cut.wav")}, "the file is empty or cut short"),
        "cut mp3": ({"audio": cut(mp3, "cut.mp3")}, "cut short"),
        "cut jpg": ({"image": cut(jpg, "cut.jpg")}, "cannot be decoded"),
        "zero video": ({"video": put("zero.mp4", b"")}, "the file is empty"),
        "zero image": ({"image": put("zero.jpg", b"")}, "the file is empty"),
        "zero audio": ({"audio": put("zero.mp3", b"")}, "the file is empty"),
        "text video": ({"video": put("text.mp4", b"hello " * 500)}, "cannot be decoded"),
        "text audio": ({"audio": put("text.mp3", b"hello " * 500)}, "cannot be decoded"),
        "playlist": ({"video": put("list.mp4", playlist)}, "cannot be decoded"),
        "concat": (
            {"video": put("concat.mp4", f"ffconcat version 1.0\nfile '{good}'\n".encode())},
            "cannot be decoded",
        ),
        "sound as video": ({"video": put("sound.mp4", mp3.read_bytes())}, "no video track"),
        "video as image": ({"image": put("video.jpg", good.read_bytes())}, "not a picture"),
        "picture as audio": ({"audio": put("picture.mp3", jpg.read_bytes())}, ""),
        "silent as audio": ({"audio": put("silent.mp3", loose.read_bytes())}, "no sound track"),
        "30 ms": (
            {"audio": file_of(write_sound(tmp_path / "30.wav", tone(0.03)))},
            "0.030 s of sound",
        ),
        "gone": ({"image": MediaFile(tmp_path / "gone.jpg")}, "cannot be read: No such file"),
        "folder": ({"image": MediaFile(tmp_path)}, "cannot be read"),
        "100 ms": ({"audio": file_of(write_sound(tmp_path / "100.wav", tone(0.1)))}, None),
        "one frame": ({"video": file_of(write_video(tmp_path / "one.mp4", 1))}, None),
        "wrong ending": ({"video": put("video.txt", good.read_bytes())}, None),
        "good": ({"video": file_of(good), "image": file_of(jpg)}, None),
    }


def test_hostile_media_are_listed_with_the_reason_and_the_rest_goes_on(hostile):
    products = [
        Product(name, {**contents, "text": name}) for name, (contents, _) in hostile.items()
    ]
    clean, features = store.extract(Catalogue("hostile", tuple(products)), workers=1)
    reasons = {skip.where: (skip.field, skip.reason) for skip in clean.skipped}
    for name, (contents, reason) in hostile.items():
        if reason is None:
            assert name not in reasons
        else:
            assert reasons[name][0] in contents and reasons[name][1].startswith(reason), name
    lengths = {
        name: dict(zip(clean.ids, np.diff(ragged.offsets), strict=True))
        for name, ragged in features.items()
    }
    for name, (contents, reason) in hostile.items():
        for (
            modality
        ) in contents:  # present exactly where there are features; nothing stands in for the others
            assert (
                clean.presence.loc[name, modality]
                == (reason is None)
                == (lengths[modality][name] > 0)
            )
    assert lengths["audio"]["good"] > 0 and lengths["audio"]["one frame"] == 0
    assert lengths["audio"]["100 ms"] == lengths["video"]["one frame"] == 1
    assert all(np.abs(ragged.values).sum(axis=1).min() > 0 for ragged in features.values())


def test_paths_that_lead_out_of_the_folder(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for path in (
        tmp_path / "secret.jpg",
        tmp_path / "in" / "a.jpg",
        tmp_path / "in" / "deep" / "b.jpg",
        tmp_path / "inside.jpg",
    ):
        write_image(path)
    assert MediaFile.inside(tmp_path / "in", "a.jpg") == file_of(tmp_path / "in" / "a.jpg")
    assert MediaFile.inside(tmp_path / "in", "deep/../a.jpg").path == tmp_path / "in" / "a.jpg"
    for name in (
        "../secret.jpg",
        "deep/../../secret.jpg",
        str(tmp_path / "secret.jpg"),
        "../inside.jpg",
    ):
        with pytest.raises(ValueError, match="leads out"):
            MediaFile.inside(tmp_path / "in", name)
    for name in ("none.jpg", "deep", ""):
        with pytest.raises(ValueError, match="no such file"):
            MediaFile.inside(tmp_path / "in", name)


def test_cover_art_is_no_video(tmp_path):
    cover = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(cover, "jpeg")
    with av.open(str(tmp_path / "a.mp3"), "w") as out:
        track, art = (
            out.add_stream("libmp3lame", rate=16_000, layout="mono"),
            out.add_stream("mjpeg", rate=1),
        )
        art.width = art.height = 64
        art.pix_fmt, art.disposition = "yuvj420p", av.stream.Disposition.attached_pic
        packet = av.Packet(cover.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = art, 0, 0, Fraction(1, 90000)
        frame = av.AudioFrame.from_ndarray(tone(1.0)[None], format="fltp", layout="mono")
        frame.rate = 16_000
        packets = [*track.encode(frame), *track.encode()]
        out.mux(packet)
        out.mux(packets)
    file = file_of(tmp_path / "a.mp3")
    assert probe(file).video is None and probe(file).audio.codec.startswith("mp3")
    with pytest.raises(MediaError, match="no video track"):
        Frames()(file)


# ---- over a catalogue


def test_sound_comes_from_the_video_where_there_is_no_file(tmp_path):
    loud, silent = (
        write_video(tmp_path / "a.mp4", 20, sound=2.0),
        write_video(tmp_path / "b.mp4", 20),
    )
    own = write_sound(tmp_path / "c.wav", tone(1.0, hz=2000))
    products = (
        Product("loud", {"text": "x", "video": file_of(loud)}),
        Product("silent", {"text": "x", "video": file_of(silent)}),
        Product("both", {"video": file_of(loud), "audio": file_of(own)}),
    )
    catalogue = store.with_sound(Catalogue("c", products))
    assert catalogue.presence["audio"].tolist() == [True, False, True]
    assert catalogue.products[0].contents["audio"] == file_of(loud) and catalogue.products[
        2
    ].contents["audio"] == file_of(own)
    assert store.with_sound(catalogue) is catalogue
    clean, features = store.extract(Catalogue("c", products))
    assert clean.fingerprint == catalogue.fingerprint and not clean.skipped  # no sound is no fault
    assert np.diff(features["audio"].offsets).tolist() == [13, 0, 7]
    without, features = store.extract(Catalogue("c", products[:2]), {"video": Frames()})
    assert "audio" not in without.modalities and set(features) == {"video"}


def test_what_an_extractor_returns_is_checked(tmp_path):
    class Odd(Crops):
        def __call__(self, file):
            values, boxes, _ = super().__call__(file)
            return Features(values * (np.nan if "nan" in file.name else 1), boxes)[:2]

    class Narrow(Crops):
        width = 3

    products = [
        Product(name, {"text": "x", "image": file_of(write_image(tmp_path / f"{name}.png"))})
        for name in ("nan", "good")
    ]
    clean, _ = store.extract(Catalogue("c", tuple(products)), {"image": Odd()})
    assert [(s.where, s.reason) for s in clean.skipped] == [
        ("nan", "features that are not finite in half precision")
    ]
    clean, features = store.extract(Catalogue("c", tuple(products)), {"image": Narrow()})
    assert (
        len(clean.skipped) == 2
        and "expected (at least 1, 3)" in clean.skipped[0].reason
        and not features
    )


def test_extractors_have_one_interface(tmp_path):
    assert list(PLAIN) == [name for name, row in MODALITIES.items() if row.kind == "features"]
    files = {
        "image": write_image(tmp_path / "a.png"),
        "video": write_video(tmp_path / "a.mp4", 10),
        "audio": write_sound(tmp_path / "a.wav", tone(1.0)),
    }
    for name, extractor in PLAIN.items():
        assert pickle.loads(pickle.dumps(extractor)) == extractor and hash(extractor) is not None
        values, boxes, _ = extractor(file_of(files[name]))
        assert values.shape[1] == extractor.width and values.dtype == np.float32
        assert (boxes is not None) == (MODALITIES[name].position == "box")


def test_work_in_parallel_keeps_order_and_leaves_torch_as_it_was():
    before = torch.get_num_threads()
    assert list(store.in_parallel(lambda n: n * n, range(100), 4)) == [n * n for n in range(100)]
    with pytest.raises(ZeroDivisionError):
        list(store.in_parallel(lambda n: 1 // n, [1, 0, 1], 2))
    assert torch.get_num_threads() == before
