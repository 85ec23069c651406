"""ComfyUI's own classes for models that no small file stands for, by our name of the architecture."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    "hunyuan_dit": (
        "hydit.models",
        "HunYuanDiT",
        {
            "hidden_size": 128,
            "depth": 4,
            "num_heads": 2,
            "text_states_dim": 64,
            "text_states_dim_t5": 64,
            "text_len_t5": 8,
        },
    ),
    "krea2": ("krea2.model", "SingleStreamDiT", {}),
    "stable_cascade": (
        "cascade.stage_c",
        "StageC",
        {
            "c_hidden": [128, 128],
            "nhead": [2, 2],
            "blocks": [[1, 1], [1, 1]],
            "c_cond": 64,
            "c_clip_text": 32,
            "c_clip_text_pooled": 32,
            "c_clip_img": 32,
        },
    ),
    "omnigen2": (
        "omnigen.omnigen2",
        "OmniGen2Transformer2DModel",
        {"hidden_size": 96, "num_layers": 2, "num_attention_heads": 3, "num_kv_heads": 1, "text_feat_dim": 32},
    ),
    "boogu": (
        "boogu.model",
        "BooguTransformer2DModel",
        {"hidden_size": 240, "num_layers": 2, "num_double_stream_layers": 1, "num_attention_heads": 2,
         "num_kv_heads": 1, "instruction_feat_dim": 32},
    ),
    "joyimage": (
        "joyimage.model",
        "JoyImageTransformer3DModel",
        {"hidden_size": 128, "num_attention_heads": 1, "text_dim": 64, "num_layers": 2},
    ),
    "ideogram4": (
        "ideogram4.model",
        "Ideogram4Transformer2DModel",
        {"num_layers": 2, "num_attention_heads": 1, "attention_head_dim": 128, "intermediate_size": 192,
         "adaln_dim": 64, "llm_features_dim": 64},
    ),
    "lens": ("lens.model", "LensTransformer2DModel", {"num_layers": 1, "num_attention_heads": 2}),
    "mage_flow": ("mage_flow.model", "MageFlowTransformer2DModel", {"num_layers": 1}),
    "hunyuan3d": (
        "hunyuan3d.model",
        "Hunyuan3Dv2",
        {"hidden_size": 128, "num_heads": 1, "depth": 1, "depth_single_blocks": 1},
    ),
    "hunyuan3d_2_1": (
        "hunyuan3dv2_1.hunyuandit",
        "HunYuanDiTPlain",
        {"hidden_size": 128, "num_heads": 2, "depth": 8, "guidance_cond_proj_dim": None},
    ),
    "ace_step": ("ace.model", "ACEStepTransformer2DModel",
        {"num_layers": 1, "inner_dim": 128, "attention_head_dim": 128, "num_attention_heads": 1}),
    "cogvideox": (
        "cogvideo.model",
        "CogVideoXTransformer3DModel",
        {"num_attention_heads": 2, "num_layers": 2, "text_embed_dim": 64, "time_embed_dim": 64,
            "use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": False,},
    ),
    "stable_audio": (
        "audio.dit",
        "AudioDiffusionTransformer",
        {"embed_dim": 128, "depth": 2, "num_heads": 2, "global_cond_dim": 128},
    ),
    "ernie": (
        "ernie.model",
        "ErnieImageModel",
        {"hidden_size": 128, "num_attention_heads": 1, "num_layers": 2, "ffn_hidden_size": 192, "text_in_dim": 64},
    ),
    "minimax_h3": (
        "minimax.model",
        "MiniMaxH3Model",
        {"hidden_size": 128, "num_layers": 2, "token_refiner_num_layers": 1, "num_attention_heads": 2,
         "ffn_hidden_size": 192, "text_dim": 64, "time_embed_hidden_size": 128, "time_embed_dim": 64},
    ),
    "seedvr2": (
        "seedvr.model",
        "NaDiT",
        {"norm_eps": 1e-5, "num_layers": 4, "mm_layers": 2, "mlp_type": "swiglu", "vid_dim": 128, "heads": 1,
         "txt_in_dim": 64, "vid_out_norm": True},
    ),
    "ovis": (
        "flux.model",
        "Flux",
        {**_STREAMS, "vec_in_dim": None, "guidance_embed": False, "yak_mlp": True, "txt_norm": True,
         "txt_ids_dims": [1, 2]},
    ),
    "longcat": (
        "flux.model",
        "Flux",
        {**_STREAMS, "vec_in_dim": None, "guidance_embed": False, "txt_ids_dims": [1, 2]},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Hosted:
    """A model as ComfyUI holds it, small, to ask for the names of its modules.

    Attributes:
        architecture: Our name of it.
        base: ComfyUI's class of loaded models, which decides on the names.
        config: What that looks up.
        arguments: Of the model's own class, beside those in `MODELS`.
        own: Names that ComfyUI accepts and maps to rows that the model does not have there.
        unread: Modules whose names in diffusers ComfyUI does not know.
        formats: Those that ComfyUI reads for it.
    """

    architecture: str
    base: str
    config: dict
    arguments: dict = field(default_factory=dict)
    own: str = "^$"
    unread: str = "^$"
    formats: tuple = ("comfy", "kohya", "diffusers")

    def question(self):
        module, name, arguments = MODELS[self.architecture]
        return {
            "base": self.base,
            "config": self.config,
            "module": module,
            "class": name,
            "arguments": {**arguments, **self.arguments},
        }


_BLOCKS = {"hidden_size": 128, "depth": 1, "depth_single_blocks": 1}
# ComfyUI reads them by its own names alone.
_NATIVE = ("comfy", "kohya")

HOSTED = {
    "flux": Hosted("flux", "Flux", _BLOCKS),
    "flux_schnell": Hosted("flux_schnell", "Flux", _BLOCKS),
    "flux2": Hosted(
        "flux2",
        "Flux2",
        _BLOCKS,
        {"mlp_ratio": 3.0},
        unread=r"_stream_modulation|^(time|guidance)_in",
    ),
    "chroma": Hosted("chroma", "Chroma", _BLOCKS, unread=r"^distilled"),
    "hunyuan_video": Hosted("hunyuan_video", "HunyuanVideo", {}, formats=_NATIVE),
    "wan": Hosted("wan", "WAN21", {}, {"model_type": "i2v"}, formats=_NATIVE),
    "qwen_image": Hosted("qwen_image", "QwenImage", {}),
    "ltxv": Hosted("ltxv", "LTXV", {}, formats=_NATIVE),
    "sd3": Hosted("sd3", "SD3", {"depth": 2, "num_blocks": 2}, {"depth": 2}),
    "auraflow": Hosted("auraflow", "AuraFlow", {"n_layers": 2, "n_double_layers": 1}),
    # Its keys and values are a third as high as its queries; the map takes them for as high.
    "lumina2": Hosted(
        "lumina2",
        "Lumina2",
        {"n_layers": 1, "dim": 192},
        {"n_heads": 6, "n_kv_heads": 2, "axes_dims": [16, 8, 8]},
        own=r"attention[._]to_[qkv]$",
        formats=_NATIVE,
    ),
    "z_image": Hosted("z_image", "Lumina2", {"n_layers": 1, "dim": 192}),
    "hidream": Hosted("hidream", "HiDream", {}),
    "cosmos": Hosted("cosmos", "CosmosPredict2", {}, formats=_NATIVE),
    "anima": Hosted("anima", "Anima", {}, formats=_NATIVE),
    "kandinsky5": Hosted("kandinsky5", "Kandinsky5", {}),
    "pixart": Hosted("pixart", "PixArt", {"depth": 1, "hidden_size": 1152}),
    # Its second and third norm have each other's names in diffusers.
    "hunyuan_dit": Hosted(
        "hunyuan_dit", "HunyuanDiT", {}, own=r"norm[23]$", formats=("comfy", "kohya", "peft")
    ),
    "krea2": Hosted("krea2", "Krea2", {"layers": 28}),
    "stable_cascade": Hosted("stable_cascade", "StableCascade_C", {}, formats=_NATIVE),
    "omnigen2": Hosted("omnigen2", "Omnigen2", {}, formats=_NATIVE),
    "boogu": Hosted("boogu", "Boogu", {}, formats=_NATIVE),
    "joyimage": Hosted("joyimage", "JoyImage", {}, formats=_NATIVE),
    "ideogram4": Hosted("ideogram4", "Ideogram4", {}, formats=_NATIVE),
    "lens": Hosted("lens", "Lens", {}, formats=_NATIVE),
    "mage_flow": Hosted("mage_flow", "MageFlow", {}, formats=_NATIVE),
    "hunyuan3d": Hosted("hunyuan3d", "Hunyuan3Dv2", {}, formats=_NATIVE),
    "hunyuan3d_2_1": Hosted("hunyuan3d_2_1", "Hunyuan3Dv2_1", {}, formats=_NATIVE),
    "ace_step": Hosted("ace_step", "ACEStep", {}, formats=_NATIVE),
    "cogvideox": Hosted("cogvideox", "CogVideoX", {}, formats=_NATIVE),
    "stable_audio": Hosted("stable_audio", "StableAudio1", {}, formats=_NATIVE),
    "ernie": Hosted("ernie", "ErnieImage", {}),
    "minimax_h3": Hosted("minimax_h3", "MiniMaxH3", {}, formats=_NATIVE),
    "seedvr2": Hosted("seedvr2", "SeedVR2", {}, formats=_NATIVE),
    "ovis": Hosted("ovis", "Flux", _BLOCKS, own=r"proj_mlp$", formats=_NATIVE),
    "longcat": Hosted("longcat", "Flux", _BLOCKS, formats=_NATIVE),
}
