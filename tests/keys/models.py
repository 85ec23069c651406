"""ComfyUI's own classes for models that no small file stands for, by our name of the architecture."""

from __future__ import annotations

_STREAMS = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 64,
    "context_in_dim": 64,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
}
_NEXT_DIT = {"n_layers": 1, "n_heads": 2, "qk_norm": True, "axes_dims": [32, 32, 32]}
_COSMOS = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 128,
    "num_blocks": 1,
    "num_heads": 1,
    "pos_emb_cls": "rope3d",
    "use_adaln_lora": True,
}

MODELS = {
    "flux": ("flux.model", "Flux", {**_STREAMS, "guidance_embed": True, "txt_ids_dims": []}),
    "flux_schnell": (
        "flux.model",
        "Flux",
        {**_STREAMS, "guidance_embed": False, "txt_ids_dims": []},
    ),
    "flux2": (
        "flux.model",
        "Flux",
        {
            **_STREAMS,
            "vec_in_dim": None,
            "axes_dim": [32, 32, 32, 32],
            "guidance_embed": True,
            "txt_ids_dims": [3],
            "global_modulation": True,
            "mlp_silu_act": True,
        },
    ),
    "chroma": (
        "chroma.model",
        "Chroma",
        {
            **_STREAMS,
            "in_dim": 64,
            "out_dim": 128,
            "hidden_dim": 64,
            "n_layers": 1,
            "txt_ids_dims": [],
        },
    ),
    "hunyuan_video": (
        "hunyuan_video.model",
        "HunyuanVideo",
        {
            **_STREAMS,
            "patch_size": [1, 2, 2],
            "guidance_embed": True,
            "byt5": False,
            "meanflow": False,
            "use_cond_type_embedding": False,
            "vision_in_dim": None,
            "meanflow_sum": False,
        },
    ),
    "wan": ("wan.model", "WanModel", {"dim": 128, "num_heads": 1, "num_layers": 1, "ffn_dim": 64}),
    "qwen_image": ("qwen_image.model", "QwenImageTransformer2DModel", {"num_layers": 1}),
    "ltxv": ("lightricks.model", "LTXVModel", {"num_layers": 1}),
    "sd3": (
        "modules.diffusionmodules.mmdit",
        "MMDiT",
        {"depth": 1, "num_blocks": 2, "adm_in_channels": 64, "input_size": None, "num_patches": 4},
    ),
    "auraflow": ("aura.mmdit", "MMDiT", {"n_layers": 2, "n_double_layers": 1}),
    "lumina2": ("lumina.model", "NextDiT", {**_NEXT_DIT, "dim": 192}),
    "z_image": (
        "lumina.model",
        "NextDiT",
        {**_NEXT_DIT, "dim": 192, "z_image_modulation": True, "pad_tokens_multiple": 32},
    ),
    "hidream": (
        "hidream.model",
        "HiDreamImageTransformer2DModel",
        {
            "patch_size": 2,
            "num_layers": 1,
            "num_single_layers": 1,
            "caption_channels": [64, 64],
            "llama_layers": [0],
            "axes_dims_rope": [64, 32, 32],
        },
    ),
    "cosmos": ("cosmos.predict2", "MiniTrainDIT", _COSMOS),
    "anima": ("anima.model", "Anima", _COSMOS),
    "kandinsky5": (
        "kandinsky5.model",
        "Kandinsky5",
        {"num_text_blocks": 1, "num_visual_blocks": 1},
    ),
    "pixart": ("pixart.pixartms", "PixArtMS", {"depth": 1}),
    "krea2": ("krea2.model", "SingleStreamDiT", {}),
}
