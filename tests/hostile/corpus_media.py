"""Hostile pictures, films and sounds: more of the table of :mod:`corpus`.

``make`` returns the file. ``comes`` is :class:`~corpus.Fails`, or what is read: of a picture its
size and the colour of its middle, of a film how many frames it has, of a sound its seconds.
"""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from corpus import Fails, case, file
from make_media import tone, write_sound, write_video
from PIL import Image, PngImagePlugin

RED, WHITE, GREY = (255, 0, 0), (255, 255, 255), (128, 128, 128)


@dataclass(frozen=True)
class Picture:
    """Width and height, and the colour of the middle, each part within 4."""

    size: tuple[int, int]
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Seconds:
    """Length of a film or of a sound, within a tenth."""

    seconds: float


# --- pictures


def saved(image: Image.Image, form: str, **how) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **how)
    return data.getvalue()


def picture(name: str, content: bytes | Callable[[Path], Path], comes, as_: str = "a.jpg") -> None:
    case("picture", name, file(as_, content) if isinstance(content, bytes) else content, comes)


def chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2, more=()) -> bytes:
    """A PNG whose header says what one likes, packed."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


SQUARE = Image.new("RGB", (40, 30), RED)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8))
BROKEN, LIMIT = "cannot be decoded", "exceeds limit"
ENDINGS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "TGA", "ICO", "JPEG2000", "AVIF")
for form in ENDINGS:
    data = saved(NOISE, form)
    size = Image.open(io.BytesIO(data)).size
    middle = Image.open(io.BytesIO(data)).convert("RGB").getpixel((size[0] // 2, size[1] // 2))
    picture(f"a {form} under a wrong ending", data, Picture(size, middle), "a.txt")
    if form != "TGA":  # has no mark of its own: Pillow knows it by its ending
        picture(f"a {form} cut to a tenth", data[: len(data) // 10], Fails(""))
for share in (50, 90, 99):
    data = saved(NOISE, "PNG")
    picture(f"a PNG cut to {share} %", data[: len(data) * share // 100], Fails(BROKEN))
for share in (50, 90):
    data = saved(NOISE, "JPEG")
    picture(f"a JPEG cut to {share} %", data[: len(data) * share // 100], Fails(BROKEN))

for name, data in (
    ("a web page", b"<!DOCTYPE html><html><body>403</body></html>"),
    ("a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
    ("an SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
    ("a PDF", b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n"),
    ("a pickle", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94."),
    ("zeros", bytes(5000)),
    ("one byte", b"\xff"),
    ("the first bytes of a JPEG", b"\xff\xd8\xff\xe0"),
    ("the first bytes of a PNG", b"\x89PNG\r\n\x1a\n"),
    ("words", "真皮手提包".encode()),
):
    picture(f"{name} named jpg", data, Fails(""))
picture("nothing named jpg", b"", Fails("empty"))
picture("PostScript", saved(SQUARE, "EPS"), Fails("a PostScript file"))

for name, data in (
    ("a PNG", png(60_000, 60_000, b"\0")),
    ("a PNG of one bit", png(2**31 - 1, 2**31 - 1, b"\0", 1, 0)),
    ("a PNG just too large", png(8193, 8193, b"\0", 1, 0)),
    ("a GIF", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\1\0\1\0\0\2;"),
    ("a BMP", saved(SQUARE, "BMP")[:18] + struct.pack("<ii", 50_000, 50_000) + bytes(200)),
    ("a PPM", b"P6 50000 50000 255\n" + bytes(99)),
):
    picture(f"{name} that says it is vast", data, Fails(""))
HEAD = saved(NOISE, "JPEG")
PLACE = HEAD.index(b"\xff\xc0") + 5
VAST = HEAD[:PLACE] + struct.pack(">HH", 65_000, 65_000) + HEAD[PLACE + 4 :]
picture("a JPEG that says it is vast", VAST, Fails(LIMIT))
TALL = HEAD[:PLACE] + struct.pack(">HH", 12_000, 12_000) + HEAD[PLACE + 4 :]
picture("a JPEG that says it is large: the rest is grey", TALL, Picture((2048, 2048), GREY))
picture("a PNG without width", png(0, 9, b"\0" * 9), Fails("not a picture"))
picture("a PNG with less in it than it says", png(400, 400, bytes(99)), Fails(BROKEN))
picture("a PNG with more in it than it says", png(4, 4, bytes(2**22)), Picture((4, 4), (0, 0, 0)))
BOMB = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**26), 9))
picture("a PNG whose comment fills the memory", png(4, 4, bytes(52), more=[BOMB]), Fails(BROKEN))
picture(
    "a PNG with a wrong sum", saved(NOISE, "PNG").replace(b"IDAT", b"IDAX", 1), Fails("not a p")
)
picture(
    "a large PNG of nothing",
    png(6000, 6000, bytes(751 * 6000), 1, 0),
    Picture((2048, 2048), (0, 0, 0)),
)
picture("a hair", saved(Image.new("L", (1, 9000), 128), "PNG"), Picture((1, 2048), GREY))
picture("one pixel", saved(Image.new("RGB", (1, 1), RED), "PNG"), Picture((1, 1), RED))

for form in ("GIF", "PNG", "WEBP", "TIFF"):
    frames = [Image.new("RGB", (20, 20), c) for c in ("red", "blue", "green")]
    how = {"lossless": True} if form == "WEBP" else {}
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], **how)
    picture(f"{form}, three pictures: the first", data, Picture((20, 20), RED))

CLEAR = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
for name, image, form, colour in (
    ("clear", CLEAR, "PNG", WHITE),
    ("clear grey", CLEAR.convert("LA"), "PNG", WHITE),
    ("clear by palette", CLEAR, "GIF", WHITE),
    ("CMYK", Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "JPEG", (254, 0, 0)),
    ("two colours", Image.new("1", (20, 20), 1), "PNG", WHITE),
    ("Lab", Image.new("LAB", (20, 20), (255, 128, 128)), "TIFF", WHITE),
    ("half clear", Image.new("RGBA", (20, 20), (0, 0, 0, 127)), "WEBP", GREY),
):
    how = {"lossless": True} if form == "WEBP" else {}
    picture(name, saved(image, form, **how), Picture((20, 20), colour))


def grey(value: float, kind, form: str) -> bytes:
    return saved(Image.fromarray(np.full((20, 20), value, kind)), form)


for name, data, comes in (
    ("16 bits, PNG", grey(32896, np.uint16, "PNG"), GREY),
    ("16 bits, TIFF", grey(32896, np.uint16, "TIFF"), GREY),
    ("16 bits, PGM", b"P5 20 20 65535\n" + struct.pack(">H", 32896) * 400, GREY),
    ("32 bits that are 8, TIFF", grey(128, np.int32, "TIFF"), GREY),
    ("32 bits that are 16, TIFF", grey(32896, np.int32, "TIFF"), GREY),
    ("32 bits, TIFF", grey(2**20, np.int32, "TIFF"), "whose white is unknown"),
    ("32 bits below zero, TIFF", grey(-1, np.int32, "TIFF"), "whose white is unknown"),
    ("fractions, TIFF", grey(0.5, np.float32, "TIFF"), "whose white is unknown"),
    ("no numbers, TIFF", grey(float("nan"), np.float32, "TIFF"), "whose white is unknown"),
    ("infinity, TIFF", grey(float("inf"), np.float32, "TIFF"), "whose white is unknown"),
):
    picture(name, data, Fails(comes) if isinstance(comes, str) else Picture((20, 20), comes))
TURNED = Image.Exif()
TURNED[0x0112] = 6
picture("lying, to be turned", saved(SQUARE, "JPEG", exif=TURNED), Picture((30, 40), (254, 0, 0)))
picture(
    "camera's notes that are none",
    saved(SQUARE, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + bytes(20)),
    Picture((40, 30), (254, 0, 0)),
)
NOTES = PngImagePlugin.PngInfo()
NOTES.add_text("Title", "\0\ud7ff" * 99)
picture("odd notes", saved(SQUARE, "PNG", pnginfo=NOTES), Picture((40, 30), RED))
picture("a folder named jpg", lambda f: (f / "a.jpg").mkdir() or f / "a.jpg", Fails("directory"))
picture("not there", lambda f: f / "a.jpg", Fails("No such file"))
picture(
    "a link to nothing", lambda f: (f / "a.jpg").symlink_to("b") or f / "a.jpg", Fails("No such f")
)
picture("a link to itself", lambda f: (f / "a.jpg").symlink_to("a.jpg") or f / "a.jpg", Fails(""))


# --- films and sounds
@cache
def film(ending: str = "mp4") -> bytes:
    """Three seconds with sound."""
    return made(lambda path: write_video(path, 30, 10, sound=3.0), f"a.{ending}")


@cache
def heard(ending: str) -> bytes:
    """Three seconds."""
    return made(lambda path: write_sound(path, tone(3.0)), f"a.{ending}")


def made(write: Callable[[Path], object], name: str) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def later(kind: str, name: str, content: Callable[[], bytes], comes, as_: str) -> None:
    """A case whose bytes are made when it is run: an encoder takes its time."""
    case(kind, name, lambda folder: file(as_, content())(folder), comes)


def cut(make: Callable[[str], bytes], ending: str, share: float) -> Callable[[], bytes]:
    return lambda: make(ending)[: int(len(make(ending)) * share)]


for ending in ("mp4", "mkv"):
    later("film", f"{ending} under a wrong ending", lambda e=ending: film(e), Seconds(3.0), "a.gif")
    for share in (0.02, 0.3, 0.5):
        what = f"{ending} cut to {share:.0%}"
        later("film", what, cut(film, ending, share), Fails(""), f"a.{ending}")
for ending in ("wav", "mp3", "flac"):
    later("sound", f"{ending} under a wrong ending", lambda e=ending: heard(e), Seconds(3.0), "a.x")
    for share in (0.0005, 0.3, 0.7):
        what = f"{ending} cut to {share:.2%}"
        later("sound", what, cut(heard, ending, share), Fails(""), f"a.{ending}")
for kind, ending in (("film", "mp4"), ("sound", "mp3")):
    for name, data in (
        ("nothing", b""),
        ("zeros", bytes(5000)),
        ("words", b"words " * 500),
        ("a web page", b"<!DOCTYPE html><html><body>403</body></html>"),
        ("a playlist", b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\na.mp4\n#EXT-X-ENDLIST\n"),
        ("a list of files", b"ffconcat version 1.0\nfile 'a.mp4'\n"),
        ("an address", b"[playlist]\nFile1=http://localhost/x.mp3\nNumberOfEntries=1\n"),
        ("a session", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 49170 RTP/AVP 0\n"),
    ):
        case(kind, f"{name} named {ending}", file(f"a.{ending}", data), Fails(""))
    case(kind, "a folder", lambda f: (f / "a").mkdir() or f / "a", Fails("directory"))
    case(kind, "not there", lambda f: f / "a", Fails("No such file"))
case("film", "a picture: one frame", file("a.mp4", saved(SQUARE, "PNG")), Seconds(0.0))
case("sound", "a picture", file("a.mp3", saved(SQUARE, "PNG")), Fails("no sound track"))
later("film", "a sound", lambda: heard("mp3"), Fails("no video track"), "a.mp4")
later(
    "sound",
    "a film that is silent",
    lambda: made(lambda p: write_video(p, 9, 10), "a.mp4"),
    Fails("no sound track"),
    "a.mp3",
)
later("sound", "a film", film, Seconds(3.0), "a.mp3")
later(
    "film", "one frame", lambda: made(lambda p: write_video(p, 1), "a.mp4"), Seconds(0.0), "a.mp4"
)
later(
    "film",
    "an index that lies",
    lambda: film().replace(b"stco", b"stcx"),
    Fails(""),
    "a.mp4",
)
later(
    "film",
    "boxes of 4 GB",
    lambda: film().replace(b"\0\0\0\x08free", b"\xff\xff\xff\xfffree"),
    Fails(BROKEN),
    "a.mp4",
)


def waved(samples: bytes, rate: int = 16_000, width: int = 2, channels: int = 1, code=1) -> bytes:
    """A WAV, of integers or (``code`` 3) fractions."""
    frame = width * channels
    form = struct.pack("<HHIIHH", code, channels, rate, rate * frame % 2**32, frame, 8 * width)
    rest = b"WAVEfmt " + struct.pack("<I", 16) + form
    rest += b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(rest)) + rest


def floats(values: np.ndarray) -> bytes:
    return waved(values.astype("<f4").tobytes(), width=4, code=3)


def sound(name: str, data: bytes, comes) -> None:
    case("sound", name, file("a.wav", data), comes)


SECOND = (tone(1.0) * 32767).astype("<i2").tobytes()
WAVE = waved(SECOND)
sound("a WAV without a sample", waved(b""), Fails("no sound can be decoded"))
sound("a WAV of one sample", waved(b"\0\1"), Seconds(0.0))
sound("8 bits", waved(SECOND[1::2], width=1), Seconds(1.0))
sound("24 bits", waved(bytes(48_000), width=3), Seconds(1.0))
sound("two channels", waved(SECOND + SECOND, channels=2), Seconds(1.0))
sound("eight channels", waved(SECOND * 8, channels=8), Seconds(1.0))
sound("a thousand channels", waved(bytes(2000 * 90), channels=1000), Fails(""))
sound("a rate of one", waved(bytes(6), rate=1), Fails(""))
sound("a rate of 192,000", waved(bytes(384_000), rate=192_000), Seconds(1.0))
sound("a rate of four thousand million", waved(SECOND, rate=2**32 - 1), Fails(""))
sound("a rate of nothing", WAVE.replace(struct.pack("<I", 16_000), bytes(4), 1), Fails(""))
sound("a length of 4 GB", WAVE[:4] + b"\xff\xff\xff\x7f" + WAVE[8:], Fails("cut short"))
sound(
    "a length that is not known",
    WAVE[:4] + b"\xff" * 4 + WAVE[8:40] + b"\xff" * 4 + WAVE[44:],
    Seconds(1.0),
)
sound("fractions", floats(tone(1.0)), Seconds(1.0))
sound("silence", floats(np.zeros(16_000)), Seconds(1.0))
sound("louder than one", floats(np.full(16_000, 1e30)), Fails("not finite"))
sound(
    "a codec of no name",
    WAVE.replace(struct.pack("<HH", 1, 1), struct.pack("<HH", 0x7777, 1), 1),
    Fails(""),
)
for number in (float("nan"), float("inf")):
    sound(f"{number}", floats(np.full(16_000, number)), Fails(""))
later(
    "sound",
    "an ID3 of 256 MB",
    lambda: b"ID3\4\0\0\x7f\x7f\x7f\x7f" + heard("mp3"),
    Fails(""),
    "a.mp3",
)
later("sound", "an MP3 behind words", lambda: b"words" * 99 + heard("mp3"), Seconds(3.0), "a.mp3")
