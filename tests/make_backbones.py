"""Tiny random models of every family that :mod:`m5lib.data.backbones` knows, saved in a folder."""

from pathlib import Path

import torch
import transformers as hf

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = SIZE | {"intermediate_size": 32}
PATCHES = {"image_size": 32, "patch_size": 8}
WORDS = WIDE | {
    "vocab_size": 50,
    "max_position_embeddings": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SQUARE = {"height": 32, "width": 32}
CROPPED = {"size": {"shortest_edge": 40}, "crop_size": SQUARE}
GREY = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
WAVES = WIDE | {
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}


def clap(fusion: bool):
    sound = {
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "projection_dim": 8,
        "enable_fusion": fusion,
        "enable_patch_fusion": fusion,
    }
    config = hf.ClapConfig(text_config=WORDS | {"projection_dim": 8}, audio_config=sound)
    return hf.ClapModel(config), hf.ClapFeatureExtractor(
        truncation="fusion" if fusion else "rand_trunc"
    )


def detr(**given):
    ends = {"out_features": ["stage4"], "layer_type": "basic", "depths": [1, 1, 1, 1]}
    ends = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], **ends)
    sizes = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
    config = hf.DetrConfig(
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        backbone_config=ends,
        d_model=16,
        num_queries=12,
        num_labels=5,
        **sizes,
    )
    process = hf.DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    return hf.DetrForObjectDetection(config), process


def yolos():
    config = hf.YolosConfig(
        **WIDE, image_size=[64, 64], patch_size=16, num_detection_tokens=12, num_labels=5
    )
    process = hf.YolosImageProcessor(size={"height": 64, "width": 64})
    return hf.YolosForObjectDetection(config), process


def whisper():
    sizes = {"encoder_layers": 2, "decoder_layers": 1, "d_model": 16}
    sizes |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    sizes |= {f"{side}_ffn_dim": 32 for side in ("encoder", "decoder")}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = hf.WhisperConfig(vocab_size=60, **sizes, **tokens)
    return hf.WhisperModel(config), hf.WhisperFeatureExtractor()


def two_towers(model, config, process, **vision):
    """A model of titles and pictures, of which only the vision tower is used."""
    return model(config(text_config=WORDS, vision_config=WIDE | vision)), process


MADE = {
    "dinov2": lambda: (
        hf.Dinov2Model(hf.Dinov2Config(**SIZE, **PATCHES)),
        hf.BitImageProcessor(**CROPPED, **GREY),
    ),
    "dinov2_with_registers": lambda: (
        hf.Dinov2WithRegistersModel(
            hf.Dinov2WithRegistersConfig(**SIZE, **PATCHES, num_register_tokens=3)
        ),
        hf.BitImageProcessor(**CROPPED, **GREY),
    ),
    "dinov3_vit": lambda: (
        hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**WIDE, **PATCHES, num_register_tokens=4)),
        hf.DINOv3ViTImageProcessor(size=SQUARE),
    ),
    "clip": lambda: two_towers(
        hf.CLIPModel, hf.CLIPConfig, hf.CLIPImageProcessor(**CROPPED), **PATCHES
    ),
    "clip_vision_model": lambda: (
        hf.CLIPVisionModel(hf.CLIPVisionConfig(**WIDE, **PATCHES)),
        hf.CLIPImageProcessor(**CROPPED),
    ),
    "siglip": lambda: two_towers(
        hf.SiglipModel, hf.SiglipConfig, hf.SiglipImageProcessor(size=SQUARE), **PATCHES
    ),
    "siglip_vision_model": lambda: (
        hf.SiglipVisionModel(hf.SiglipVisionConfig(**WIDE, **PATCHES)),
        hf.SiglipImageProcessor(size=SQUARE),
    ),
    "siglip2": lambda: two_towers(
        hf.Siglip2Model,
        hf.Siglip2Config,
        hf.Siglip2ImageProcessor(patch_size=8, max_num_patches=24),
        num_patches=16,
        patch_size=8,
    ),
    "siglip2_vision_model": lambda: (
        hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**WIDE, num_patches=16, patch_size=8)),
        hf.Siglip2ImageProcessor(patch_size=8, max_num_patches=24),
    ),
    "videomae": lambda: (
        hf.VideoMAEModel(hf.VideoMAEConfig(**WIDE, **PATCHES, num_frames=6, tubelet_size=2)),
        hf.VideoMAEImageProcessor(**CROPPED),
    ),
    "wav2vec2": lambda: (
        hf.Wav2Vec2Model(hf.Wav2Vec2Config(**WAVES)),
        hf.Wav2Vec2FeatureExtractor(),
    ),
    "hubert": lambda: (hf.HubertModel(hf.HubertConfig(**WAVES)), hf.Wav2Vec2FeatureExtractor()),
    "whisper": whisper,
    "clap": lambda: clap(False),
    "clap_fused": lambda: clap(True),
    "detr": detr,
    "yolos": yolos,
}


def save(name: str, folder: Path, seed: int = 0) -> Path:
    """The folder of a model with its processor."""
    torch.manual_seed(seed)
    model, process = MADE[name]()
    model.save_pretrained(folder)
    process.save_pretrained(folder)
    return folder
