import io
import pickle
import tarfile
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
import torchaudio
from make_media import file_of, number_of, shared, tone, write_image, write_sound, write_video
from PIL import Image

from m5lib import media
from m5lib.backbones import Clips, Regions
from m5lib.data import Catalogue, DataError, MediaFile, Product
from m5lib.decoding import MediaError, frames, open_image, probe, sound
from m5lib.extractors import HOP, PLAIN, RATE, Crops, Frames, LogMel, Mfcc, ReleasedMel
from m5lib.modalities import MODALITIES

REAL = {
    "nasa_13013.mp4": ("h264", 13.0, (320, 180), 25.0, 8000),
    "h265_video.mp4": ("hevc", 1.0, (128, 128), 10.0, None),
    "av1_video.mkv": ("libdav1d", 5.0, (640, 360), 25.0, None),
}


# ---- video


@pytest.mark.parametrize("name", REAL)
def test_real_videos_decode_with_their_length_rate_and_shape(name):
    codec, seconds, (width, height), fps, rate = REAL[name]
    file = file_of(shared("data", "media", name))
    found = probe(file)
    assert found.video == (codec, pytest.approx(seconds), width, height, pytest.approx(fps))
    assert (found.audio.rate if found.audio else None) == rate
    times = np.arange(0.0, seconds, 0.37)
    pixels, stamps = frames(file, times)
    assert pixels.shape == (len(times), height, width, 3) and pixels.dtype == np.uint8
    assert np.abs(stamps - times).max() <= 0.5 / fps + 1e-9
    values = Frames()(file).values
    assert values.shape == (min(12, round(seconds)), Frames().width) and values.std() > 0.1


@pytest.mark.parametrize(("fps", "suffix"), [(10, ".mp4"), (25, ".mkv")])
def test_frames_are_the_nearest_in_time(tmp_path, fps, suffix):
    file = file_of(write_video(tmp_path / f"v{suffix}", 3 * fps, fps))
    times = np.sort(np.random.default_rng(0).uniform(0, 3 - 0.5 / fps, 20))
    pixels, stamps = frames(file, times)
    assert np.abs(stamps - times).max() <= 0.5 / fps + 1e-9
    assert [number_of(p) for p in pixels] == [round(s * fps) for s in stamps]
    pixels, stamps = frames(file, [10.0, 20.0])  # past the end: the last frame
    assert number_of(pixels[0]) == number_of(pixels[1]) == 3 * fps - 1


def test_frames_sizes_and_rotation(tmp_path):
    def corner(n):  # white in the upper left quarter
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[:24, :32] = 255
        return pixels

    upright = file_of(write_video(tmp_path / "a.mp4", 5, pixels=corner))
    assert frames(upright, [0.0], 24)[0].shape == (1, 24, 32, 3)
    assert frames(upright, [0.0], (10, 20))[0].shape == (1, 10, 20, 3)
    for degrees, (row, column) in {90: (1, 0), -90: (0, 1), 180: (1, 1)}.items():  # counter-clockwise, as FFmpeg says
        turned = file_of(write_video(tmp_path / f"{degrees}.mp4", 5, pixels=corner, rotation=degrees))
        pixels = frames(turned, [0.0], (20, 20))[0][0].mean(-1)
        quarters = pixels.reshape(2, 10, 2, 10).mean((1, 3))
        assert np.unravel_index(quarters.argmax(), (2, 2)) == (row, column)
        assert frames(turned, [0.0])[0].shape[1:3] == ((64, 48) if degrees % 180 else (48, 64))


def test_frames_extractor_takes_the_middle_of_each_second(tmp_path):
    long, one = write_video(tmp_path / "long.mp4", 140, 10), write_video(tmp_path / "one.mp4", 1, 25)
    values = Frames(size=8)(file_of(long)).values
    assert values.shape == (12, 192) and np.abs(values).max() <= 1
    assert np.allclose(values[3], frames(file_of(long), [3.5], (8, 8))[0].reshape(-1) / 127.5 - 1, atol=1e-6)
    assert Frames()(file_of(one)).values.shape == (1, 768)  # a single frame is a video of one token


def test_a_video_inside_a_tar_is_read_in_place(tmp_path):
    path = write_video(tmp_path / "v.mp4", 20, 10, sound=2.0)
    with tarfile.open(tmp_path / "v.tar", "w") as tar:
        tar.add(write_image(tmp_path / "first.png"), "first.png")
        tar.add(path, "v.mp4")
    with tarfile.open(tmp_path / "v.tar") as tar:
        member = tar.getmember("v.mp4")
    inside = MediaFile(tmp_path / "v.tar", member.offset_data, member.size, "v.mp4")
    assert np.array_equal(Frames()(inside).values, Frames()(file_of(path)).values)
    assert inside.checksum == file_of(path).checksum == MediaFile(path).checksum


def test_metadata_in_another_encoding_are_no_fault(tmp_path):
    path = write_video(tmp_path / "v.mp4", 5, title="abcdefgh")
    data = path.read_bytes()
    assert data.count(b"abcdefgh") == 1
    path.write_bytes(data.replace(b"abcdefgh", "真皮手提".encode("gbk")))
    assert Frames()(file_of(path)).values.shape == (1, 768)


# ---- sound


def test_sound_has_its_length_pitch_and_loudness(tmp_path):
    path = write_sound(tmp_path / "a.wav", tone(2.0, rate=44_100), rate=44_100)
    samples = sound(file_of(path))
    assert samples.shape == (32_000,) and samples.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(samples))
    assert spectrum.argmax() / 2.0 == pytest.approx(440, abs=1) and np.abs(samples).max() == pytest.approx(0.5, abs=0.02)
    assert sound(file_of(path), rate=8000, seconds=0.5).shape == (4000,)


def test_two_channels_are_halved_and_added(tmp_path):
    path = write_sound(tmp_path / "a.wav", np.stack([tone(1.0), 0 * tone(1.0)]))
    assert np.abs(sound(file_of(path)) - 0.5 * tone(1.0)).max() < 1e-3


def test_the_sound_of_a_real_video_agrees_with_its_mp3():
    video, mp3 = (file_of(shared("data", "media", name)) for name in ("nasa_13013.mp4", "nasa_13013.mp4.audio.mp3"))
    assert probe(mp3).seconds == pytest.approx(probe(video).audio.seconds, abs=0.05)
    a, b = Mfcc()(video).values, Mfcc()(mp3).values
    assert a.shape == b.shape == (76, 40)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99
    assert np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)]) > 0.9  # each coefficient over time


def test_spectrograms_equal_torchaudio_on_the_same_samples():
    samples = torch.from_numpy(tone(3.0) + np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32))
    mel = {"n_fft": 1024, "hop_length": 256, "n_mels": 80}
    ours, theirs = Mfcc().spectrogram(samples), torchaudio.transforms.MFCC(RATE, 40, melkwargs=mel)(samples)
    assert ours.shape == (188, 40) and np.abs(ours - theirs.numpy().T).max() < 1e-3  # decibels
    decibels = torchaudio.transforms.AmplitudeToDB(top_db=80)(torchaudio.transforms.MelSpectrogram(RATE, **mel)(samples))
    assert np.abs(LogMel().spectrogram(samples) - decibels.numpy().T).max() < 1e-4


def test_audio_tokens_are_means_of_ten_frames(tmp_path):
    file = file_of(write_sound(tmp_path / "a.flac", tone(1.0) + tone(1.0, hz=3000, loud=0.1)))
    values, grid = Mfcc()(file).values, Mfcc().spectrogram(torch.from_numpy(sound(file))) / 40
    grid[:, 0] /= 80**0.5
    assert values.shape == (7, 40)  # 63 frames: six tokens of ten and one of three
    assert np.allclose(values[2], grid[20:30].mean(0), atol=1e-5) and np.allclose(values[6], grid[60:].mean(0), atol=1e-5)
    assert np.abs(LogMel()(file).values).max() <= 1


@pytest.mark.parametrize(("seconds", "tokens"), [(0.1, 1), (1.0, 7), (12.0, 76), (20.0, 76)])
def test_sound_of_any_length_gives_tokens_of_one_length(tmp_path, seconds, tokens):
    file = file_of(write_sound(tmp_path / "a.wav", tone(seconds)))
    assert Mfcc()(file).values.shape == (tokens, 40) and LogMel()(file).values.shape == (tokens, 80)
    assert tokens <= MODALITIES["audio"].max_tokens


def test_released_mel_is_the_released_layout(tmp_path):
    samples = tone(13.0) + np.random.default_rng(1).normal(0, 0.05, 208_000).astype(np.float32)
    file = file_of(write_sound(tmp_path / "a.flac", samples))
    values = ReleasedMel()(file).values
    assert values.shape == (80, 751) == (80, ReleasedMel().width) and 192_000 // HOP + 1 == 751
    heard = torch.from_numpy(sound(file))
    mel = torchaudio.transforms.MelSpectrogram(n_mels=80, n_fft=1024, win_length=1024, hop_length=256)(heard).numpy()
    expected = (mel - mel.mean(0)) / (mel.std(0, ddof=1) + 1e-9)
    assert np.abs(values - expected).max() < 1e-4
    assert np.abs(values.mean(0)).max() < 1e-4  # so the mean token is zero (AUDIT 9)


# ---- pictures


def save(path, image, **options):
    image.save(path, **options)
    return file_of(path)


def test_pictures_of_unusual_kinds(tmp_path):
    red = Image.new("RGB", (40, 20), (200, 30, 30))
    cmyk = open_image(save(tmp_path / "cmyk.jpg", red.convert("CMYK"), quality=95))
    assert np.abs(np.asarray(cmyk).astype(int) - (200, 30, 30)).max() < 12
    ramp = Image.fromarray(np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32))
    grey = np.asarray(open_image(save(tmp_path / "16.png", ramp)))[..., 0]
    assert grey[0, 0] == 0 and grey[-1, -1] == 254 and grey[16, 0] == 127  # scaled, not clipped
    palette = red.quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert np.asarray(open_image(save(tmp_path / "p.png", palette))).min() == 255  # transparent is white
    assert open_image(save(tmp_path / "la.png", Image.new("LA", (4, 4), (0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(save(tmp_path / "1.png", Image.new("1", (4, 4), 1))).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(MediaError, match="floating-point"):
        open_image(save(tmp_path / "f.tiff", Image.new("F", (4, 4))))


def test_orientation_of_the_camera_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert open_image(save(tmp_path / "e.jpg", image, exif=exif)).size == (20, 40)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_pictures_of_ten_thousand_pixels(tmp_path, suffix):
    wide = Image.new("RGB", (10_000, 500), (10, 200, 10))
    wide.paste((200, 10, 10), (0, 0, 5000, 500))
    image = open_image(save(tmp_path / f"wide{suffix}", wide))
    assert image.size[0] == 2048 and abs(image.size[1] - 102) <= 1
    values, boxes = Crops()(file_of(tmp_path / f"wide{suffix}"))
    assert values.shape == (14, 192) and boxes[0].tolist() == [0, 0, 1, 1, 1]
    assert values[1].reshape(8, 8, 3)[0, 0, 0] > 0.4 and values[2].reshape(8, 8, 3)[0, -1, 1] > 0.4


def test_pictures_that_would_fill_the_memory_are_refused(tmp_path):
    with pytest.raises(MediaError, match="exceeds limit"):
        open_image(save(tmp_path / "bomb.png", Image.new("1", (20_000, 10_000))))


# ---- hostile media


@pytest.fixture
def hostile(tmp_path):
    """name -> (contents, how the reason begins or None where it is usable)."""
    good = write_video(tmp_path / "good.mp4", 40, 10, sound=4.0)
    loose = write_video(tmp_path / "loose.mkv", 60, 10)
    wav, mp3 = write_sound(tmp_path / "s.wav", tone(8.0)), write_sound(tmp_path / "s.mp3", tone(8.0))
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
        "concat": ({"video": put("concat.mp4", f"ffconcat version 1.0\nfile '{good}'\n".encode())}, "cannot be decoded"),
        "sound as video": ({"video": put("sound.mp4", mp3.read_bytes())}, "no video track"),
        "video as image": ({"image": put("video.jpg", good.read_bytes())}, "not a picture"),
        "picture as audio": ({"audio": put("picture.mp3", jpg.read_bytes())}, ""),
        "silent as audio": ({"audio": put("silent.mp3", loose.read_bytes())}, "no sound track"),
        "30 ms": ({"audio": file_of(write_sound(tmp_path / "30.wav", tone(0.03)))}, "0.030 s of sound"),
        "gone": ({"image": MediaFile(tmp_path / "gone.jpg")}, "cannot be read: No such file"),
        "folder": ({"image": MediaFile(tmp_path)}, "cannot be read"),
        "100 ms": ({"audio": file_of(write_sound(tmp_path / "100.wav", tone(0.1)))}, None),
        "one frame": ({"video": file_of(write_video(tmp_path / "one.mp4", 1))}, None),
        "wrong ending": ({"video": put("video.txt", good.read_bytes())}, None),
        "good": ({"video": file_of(good), "image": file_of(jpg)}, None),
    }


def test_hostile_media_are_listed_with_the_reason_and_the_rest_goes_on(hostile):
    products = [Product(name, {**contents, "text": name}) for name, (contents, _) in hostile.items()]
    clean, features = media.extract(Catalogue("hostile", tuple(products)), workers=1)
    reasons = {skip.where: (skip.field, skip.reason) for skip in clean.skipped}
    for name, (contents, reason) in hostile.items():
        if reason is None:
            assert name not in reasons
        else:
            assert reasons[name][0] in contents and reasons[name][1].startswith(reason), name
    lengths = {name: dict(zip(clean.ids, np.diff(ragged.offsets), strict=True)) for name, ragged in features.items()}
    for name, (contents, reason) in hostile.items():
        for modality in contents:  # present exactly where there are features; nothing stands in for the others
            assert clean.presence.loc[name, modality] == (reason is None) == (lengths[modality][name] > 0)
    assert lengths["audio"]["good"] > 0 and lengths["audio"]["one frame"] == 0
    assert lengths["audio"]["100 ms"] == lengths["video"]["one frame"] == 1
    assert all(np.abs(ragged.values).sum(axis=1).min() > 0 for ragged in features.values())


def test_paths_that_lead_out_of_the_folder(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for path in (tmp_path / "secret.jpg", tmp_path / "in" / "a.jpg", tmp_path / "in" / "deep" / "b.jpg", tmp_path / "inside.jpg"):
        write_image(path)
    assert MediaFile.inside(tmp_path / "in", "a.jpg") == file_of(tmp_path / "in" / "a.jpg")
    assert MediaFile.inside(tmp_path / "in", "deep/../a.jpg").path == tmp_path / "in" / "a.jpg"
    for name in ("../secret.jpg", "deep/../../secret.jpg", str(tmp_path / "secret.jpg"), "../inside.jpg"):
        with pytest.raises(ValueError, match="leads out"):
            MediaFile.inside(tmp_path / "in", name)
    for name in ("none.jpg", "deep", ""):
        with pytest.raises(ValueError, match="no such file"):
            MediaFile.inside(tmp_path / "in", name)


def test_cover_art_is_no_video(tmp_path):
    cover = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(cover, "jpeg")
    with av.open(str(tmp_path / "a.mp3"), "w") as out:
        track, art = out.add_stream("libmp3lame", rate=16_000, layout="mono"), out.add_stream("mjpeg", rate=1)
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
    assert probe(file).video is None and probe(file).audio.rate == 16_000
    with pytest.raises(MediaError, match="no video track"):
        Frames()(file)


# ---- over a catalogue


def test_sound_comes_from_the_video_where_there_is_no_file(tmp_path):
    loud, silent = write_video(tmp_path / "a.mp4", 20, sound=2.0), write_video(tmp_path / "b.mp4", 20)
    own = write_sound(tmp_path / "c.wav", tone(1.0, hz=2000))
    products = (
        Product("loud", {"text": "x", "video": file_of(loud)}),
        Product("silent", {"text": "x", "video": file_of(silent)}),
        Product("both", {"video": file_of(loud), "audio": file_of(own)}),
    )
    catalogue = media.with_sound(Catalogue("c", products))
    assert catalogue.presence["audio"].tolist() == [True, False, True]
    assert catalogue.products[0].contents["audio"] == file_of(loud) and catalogue.products[2].contents["audio"] == file_of(own)
    assert media.with_sound(catalogue) is catalogue
    clean, features = media.extract(Catalogue("c", products))
    assert clean.fingerprint == catalogue.fingerprint and not clean.skipped  # no sound is no fault
    assert np.diff(features["audio"].offsets).tolist() == [13, 0, 7]
    without, features = media.extract(Catalogue("c", products[:2]), {"video": Frames()})
    assert "audio" not in without.modalities and set(features) == {"video"}


def test_what_an_extractor_returns_is_checked(tmp_path):
    class Odd(Crops):
        def __call__(self, file):
            values, boxes = super().__call__(file)
            return media.Features(values * (np.nan if "nan" in file.name else 1), boxes)[:2]

    class Narrow(Crops):
        width = 3

    products = [Product(name, {"text": "x", "image": file_of(write_image(tmp_path / f"{name}.png"))}) for name in ("nan", "good")]
    clean, _ = media.extract(Catalogue("c", tuple(products)), {"image": Odd()})
    assert [(s.where, s.reason) for s in clean.skipped] == [("nan", "features that are not finite in half precision")]
    clean, features = media.extract(Catalogue("c", tuple(products)), {"image": Narrow()})
    assert len(clean.skipped) == 2 and "expected (at least 1, 3)" in clean.skipped[0].reason and not features


def test_extractors_have_one_interface(tmp_path):
    assert list(PLAIN) == [name for name, row in MODALITIES.items() if row.kind == "features"]
    files = {
        "image": write_image(tmp_path / "a.png"),
        "video": write_video(tmp_path / "a.mp4", 10),
        "audio": write_sound(tmp_path / "a.wav", tone(1.0)),
    }
    for name, extractor in PLAIN.items():
        assert pickle.loads(pickle.dumps(extractor)) == extractor and hash(extractor) is not None
        values, boxes = extractor(file_of(files[name]))
        assert values.shape[1] == extractor.width and values.dtype == np.float32
        assert (boxes is not None) == (MODALITIES[name].position == "box")


def test_work_in_parallel_keeps_order_and_leaves_torch_as_it_was():
    before = torch.get_num_threads()
    assert list(media.in_parallel(lambda n: n * n, range(100), 4)) == [n * n for n in range(100)]
    with pytest.raises(ZeroDivisionError):
        list(media.in_parallel(lambda n: 1 // n, [1, 0, 1], 2))
    assert torch.get_num_threads() == before


# ---- pre-trained extractors, with random weights


def test_clips_of_a_video(tmp_path):
    from m5lib.backbones import _s3d

    torch.manual_seed(0)
    torch.save(_s3d().state_dict(), tmp_path / "s3d.pt")
    clips = Clips(limit=2, side=64, weights=tmp_path / "s3d.pt")
    values = clips(file_of(write_video(tmp_path / "a.mp4", 16, 10))).values  # 1.6 s: a clip, and one filled up
    assert values.shape == (2, clips.width) and np.allclose(np.linalg.norm(values, axis=1), 1, atol=1e-5)
    assert clips(file_of(write_video(tmp_path / "b.mp4", 1, 25))).values.shape == (1, 1024)


def test_regions_of_a_picture(tmp_path):
    from m5lib.backbones import _faster_rcnn

    torch.manual_seed(0)
    torch.save(_faster_rcnn().state_dict(), tmp_path / "rcnn.pt")
    regions = Regions(side=96, weights=tmp_path / "rcnn.pt")
    values, boxes = regions(file_of(write_image(tmp_path / "a.png", size=(200, 150))))
    assert 1 <= len(values) <= 36 and values.shape[1] == regions.width and boxes.shape == (len(values), 5)
    assert boxes.min() >= 0 and boxes.max() <= 1 and (boxes[:, 2] > boxes[:, 0]).all()
    (tmp_path / "rcnn.pt").unlink()


def test_regions_kept_are_between_ten_and_thirty_six():
    boxes = torch.tensor([[10.0 * n, 0, 10 * n + 8, 8] for n in range(60)])
    for scores, kept in ((torch.full((60,), 0.9), 36), (torch.full((60,), 0.01), 10), (torch.linspace(0.99, 0.0, 60), 36)):
        assert len(Regions()._keep(boxes, scores, 600, 800)) == kept
    assert Regions()._keep(boxes, torch.linspace(0.0, 0.3, 60), 600, 800).tolist() == list(range(59, 39, -1))  # score >= 0.2
    assert len(Regions()._keep(boxes[:4], torch.full((4,), 0.9), 600, 800)) == 4


def test_weights_that_cannot_be_read_end_the_extraction(tmp_path):
    (tmp_path / "bad.pt").write_bytes(pickle.dumps({"x": print}))
    image = file_of(write_image(tmp_path / "a.png"))
    for name in ("bad.pt", "none.pt"):
        with pytest.raises(DataError, match="give weights="):
            media.extract(Catalogue("c", (Product("a", {"image": image}),)), {"image": Regions(weights=tmp_path / name)})
