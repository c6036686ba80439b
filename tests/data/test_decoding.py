import tarfile

import numpy as np
import pytest
from make_media import file_of, number_of, shared, tone, write_image, write_sound, write_video
from PIL import Image

from m5lib.data import MediaFile
from m5lib.data.decoding import MediaError, frames, open_image, probe, sound
from m5lib.data.extractors import Crops, Frames

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
    assert found.video == (codec, pytest.approx(seconds)) and (found.audio is None) == (
        rate is None
    )
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
    for degrees, (row, column) in {
        90: (1, 0),
        -90: (0, 1),
        180: (1, 1),
    }.items():  # counter-clockwise, as FFmpeg says
        turned = file_of(
            write_video(tmp_path / f"{degrees}.mp4", 5, pixels=corner, rotation=degrees)
        )
        pixels = frames(turned, [0.0], (20, 20))[0][0].mean(-1)
        quarters = pixels.reshape(2, 10, 2, 10).mean((1, 3))
        assert np.unravel_index(quarters.argmax(), (2, 2)) == (row, column)
        assert frames(turned, [0.0])[0].shape[1:3] == ((64, 48) if degrees % 180 else (48, 64))


def test_frames_extractor_takes_the_middle_of_each_second(tmp_path):
    long, one = (
        write_video(tmp_path / "long.mp4", 140, 10),
        write_video(tmp_path / "one.mp4", 1, 25),
    )
    values = Frames(cells=2)(file_of(long)).values
    assert values.shape == (12, 44)
    fourth = frames(file_of(long), [3.5], (8, 8))[0].astype(np.float32) / 255
    assert np.allclose(values[3], Crops(cells=2).describe(fourth)[0], atol=1e-6)
    assert Frames()(file_of(one)).values.shape == (1, 396)  # a single frame is a video of one token


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
    assert Frames()(file_of(path)).values.shape == (1, 396)


# ---- sound


def test_sound_has_its_length_pitch_and_loudness(tmp_path):
    path = write_sound(tmp_path / "a.wav", tone(2.0, rate=44_100), rate=44_100)
    samples = sound(file_of(path))
    assert samples.shape == (32_000,) and samples.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(samples))
    assert spectrum.argmax() / 2.0 == pytest.approx(440, abs=1) and np.abs(
        samples
    ).max() == pytest.approx(0.5, abs=0.02)
    assert sound(file_of(path), rate=8000, seconds=0.5).shape == (4000,)


def test_two_channels_are_halved_and_added(tmp_path):
    path = write_sound(tmp_path / "a.wav", np.stack([tone(1.0), 0 * tone(1.0)]))
    assert np.abs(sound(file_of(path)) - 0.5 * tone(1.0)).max() < 1e-3


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
    assert (
        np.asarray(open_image(save(tmp_path / "p.png", palette))).min() == 255
    )  # transparent is white
    assert open_image(save(tmp_path / "la.png", Image.new("LA", (4, 4), (0, 0)))).getpixel(
        (0, 0)
    ) == (255, 255, 255)
    assert open_image(save(tmp_path / "1.png", Image.new("1", (4, 4), 1))).getpixel((0, 0)) == (
        255,
        255,
        255,
    )
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
    values, boxes, *_ = Crops()(file_of(tmp_path / f"wide{suffix}"))
    assert values.shape == (14, Crops().width) and boxes[0].tolist() == [0, 0, 1, 1, 1]
    red, green = (
        values[n, : 3 * Crops().cells ** 2].reshape(-1, 3).mean(0) for n in (1, 2)
    )  # upper left and right crop
    assert red[0] > red[1] and green[1] > green[0]


def test_pictures_that_would_fill_the_memory_are_refused(tmp_path):
    with pytest.raises(MediaError, match="exceeds limit"):
        open_image(save(tmp_path / "bomb.png", Image.new("1", (20_000, 10_000))))
