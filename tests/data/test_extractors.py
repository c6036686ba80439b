import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchaudio
from make_media import file_of, shared, tone, write_image, write_sound, write_video

from m5lib.catalogue import Catalogue, DataError, Product
from m5lib.data import store
from m5lib.data.decoding import probe, sound
from m5lib.data.extractors import HOP, RATE, LogMel, Mfcc, ReleasedMel
from m5lib.data.networks import Clips, Regions
from m5lib.modalities import MODALITIES


def test_the_sound_of_a_real_video_agrees_with_its_mp3():
    video, mp3 = (
        file_of(shared("data", "media", name))
        for name in ("nasa_13013.mp4", "nasa_13013.mp4.audio.mp3")
    )
    assert probe(mp3).seconds == pytest.approx(probe(video).audio.seconds, abs=0.05)
    a, b = Mfcc()(video).values, Mfcc()(mp3).values
    assert a.shape == b.shape == (76, 40)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99
    assert (
        np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)]) > 0.9
    )  # each coefficient over time


def test_spectrograms_equal_torchaudio_on_the_same_samples():
    samples = torch.from_numpy(
        tone(3.0) + np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)
    )
    mel = {"n_fft": 1024, "hop_length": 256, "n_mels": 80}
    ours, theirs = (
        Mfcc().spectrogram(samples),
        torchaudio.transforms.MFCC(RATE, 40, melkwargs=mel)(samples),
    )
    assert ours.shape == (188, 40) and np.abs(ours - theirs.numpy().T).max() < 1e-3  # decibels
    decibels = torchaudio.transforms.AmplitudeToDB(top_db=80)(
        torchaudio.transforms.MelSpectrogram(RATE, **mel)(samples)
    )
    assert np.abs(LogMel().spectrogram(samples) - decibels.numpy().T).max() < 1e-4


def test_audio_tokens_are_means_of_ten_frames(tmp_path):
    file = file_of(write_sound(tmp_path / "a.flac", tone(1.0) + tone(1.0, hz=3000, loud=0.1)))
    values, grid = Mfcc()(file).values, Mfcc().spectrogram(torch.from_numpy(sound(file))) / 40
    grid[:, 0] /= 80**0.5
    assert values.shape == (7, 40)  # 63 frames: six tokens of ten and one of three
    assert np.allclose(values[2], grid[20:30].mean(0), atol=1e-5) and np.allclose(
        values[6], grid[60:].mean(0), atol=1e-5
    )
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
    mel = torchaudio.transforms.MelSpectrogram(
        n_mels=80, n_fft=1024, win_length=1024, hop_length=256
    )(heard).numpy()
    expected = (mel - mel.mean(0)) / (mel.std(0, ddof=1) + 1e-9)
    assert np.abs(values - expected).max() < 1e-4
    assert np.abs(values.mean(0)).max() < 1e-4  # so the mean token is zero (AUDIT 9)


def test_clips_of_a_video(tmp_path):
    from m5lib.data.networks import _s3d

    torch.manual_seed(0)
    torch.save(_s3d({"classifier.1.bias": [0] * 7}).state_dict(), tmp_path / "s3d.pt")
    clips = Clips(limit=2, side=64, weights=tmp_path / "s3d.pt")
    values = clips(
        file_of(write_video(tmp_path / "a.mp4", 16, 10))
    ).values  # 1.6 s: a clip, and one filled up
    assert values.shape == (2, clips.width) and np.allclose(
        np.linalg.norm(values, axis=1), 1, atol=1e-5
    )
    assert clips(file_of(write_video(tmp_path / "b.mp4", 1, 25))).values.shape == (1, 1024)


def test_regions_of_a_picture(tmp_path):
    from m5lib.data.networks import _faster_rcnn

    torch.manual_seed(0)
    state = {"roi_heads.box_predictor.cls_score.bias": [0] * 5}
    torch.save(_faster_rcnn(state).state_dict(), tmp_path / "rcnn.pt")
    regions = Regions(side=96, weights=tmp_path / "rcnn.pt")
    values, boxes, classes = regions(file_of(write_image(tmp_path / "a.png", size=(200, 150))))
    assert classes.shape == (len(values), 4) and np.allclose(classes.sum(axis=1), 1, atol=1e-5)
    assert (
        1 <= len(values) <= 36
        and values.shape[1] == regions.width
        and boxes.shape == (len(values), 5)
    )
    assert boxes.min() >= 0 and boxes.max() <= 1 and (boxes[:, 2] > boxes[:, 0]).all()
    (tmp_path / "rcnn.pt").unlink()


def test_regions_kept_are_between_ten_and_thirty_six():
    boxes = torch.tensor([[10.0 * n, 0, 10 * n + 8, 8] for n in range(60)])
    for scores, kept in (
        (torch.full((60,), 0.9), 36),
        (torch.full((60,), 0.01), 10),
        (torch.linspace(0.99, 0.0, 60), 36),
    ):
        assert len(Regions()._keep(boxes, scores, 600, 800)) == kept
    assert Regions()._keep(boxes, torch.linspace(0.0, 0.3, 60), 600, 800).tolist() == list(
        range(59, 39, -1)
    )  # score >= 0.2
    assert len(Regions()._keep(boxes[:4], torch.full((4,), 0.9), 600, 800)) == 4


def test_weights_that_cannot_be_read_end_the_extraction(tmp_path):
    (tmp_path / "bad.pt").write_bytes(pickle.dumps({"x": print}, protocol=2))
    image = file_of(write_image(tmp_path / "a.png"))
    for name in ("bad.pt", "none.pt"):
        with pytest.raises(DataError, match="give weights="):
            store.extract(
                Catalogue("c", (Product("a", {"image": image}),)),
                {"image": Regions(weights=tmp_path / name)},
            )


def test_threads_that_begin_at_once_all_hear():
    """In a fresh interpreter: torchaudio's modules import each other, and a thread must not find
    half of one."""
    code = """
import threading, torch
from m5lib.data.extractors import Mfcc
barrier, failed = threading.Barrier(8), []
def hear():
    barrier.wait()
    try:
        Mfcc().spectrogram(torch.randn(4096))
    except Exception as error:
        failed.append(error)
threads = [threading.Thread(target=hear) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
assert not failed, failed
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
