"""open_clip's names: OpenAI's for most models, and timm's for the image towers of SigLIP."""

from clip_jax.config import ModelConfig
from clip_jax.models.towers.vision_transformer import VisionTransformerConfig
from clip_jax.weights import openai
from clip_jax.weights.mapping import Link, known_tower, stacked
from clip_jax.weights.openai import linear, norm


def links(config: ModelConfig, *, custom_text: bool | None = None) -> list[Link]:
    """The table of names of a whole model.

    Args:
      config: the architecture.
      custom_text: whether the text tower's names start with "text.", as those of open_clip's
        CustomTextCLIP do; None: as open_clip itself has it for the architecture.
    """
    image, prefix = IMAGE_LINKS[known_tower("open_clip", IMAGE_LINKS, config.vision)](config.vision)
    if custom_text is not None:
        prefix = "text." if custom_text else ""
    found = [
        *image,
        *openai.text_links(config, prefix=prefix),
        Link("params/logit_scale", "logit_scale"),
    ]
    if config.init_logit_bias is not None:
        found.append(Link("params/logit_bias", "logit_bias"))
    return found


is_no_weight = openai.is_no_weight


def _vision_transformer(vision: VisionTransformerConfig) -> tuple[list[Link], str]:
    """The table of an image tower, and what stands before the names of its text tower."""
    if vision.pool == "map":
        return _timm_links(vision), "text."
    return openai.vision_transformer_links(vision), ""


def _timm_links(vision: VisionTransformerConfig) -> list[Link]:
    trunk, pool, head = "visual.trunk", "params/image/pool", "visual.trunk.attn_pool"
    return [
        *linear("params/image/patch_embedding", f"{trunk}.patch_embed.proj", kernel="conv"),
        Link("params/image/position_embedding", f"{trunk}.pos_embed", "lead"),
        *_timm_blocks("params/image/transformer/blocks", f"{trunk}.blocks.{{}}", vision.depth),
        *norm("params/image/post_norm", f"{trunk}.norm"),
        Link(f"{pool}/probe", f"{head}.latent"),
        *linear(f"{pool}/query", f"{head}.q"),
        *linear(f"{pool}/key_value", f"{head}.kv"),
        *linear(f"{pool}/out", f"{head}.proj"),
        *norm(f"{pool}/norm", f"{head}.norm"),
        *linear(f"{pool}/mlp/up", f"{head}.mlp.fc1"),
        *linear(f"{pool}/mlp/down", f"{head}.mlp.fc2"),
    ]


def _timm_blocks(ours: str, theirs: str, depth: int) -> list[Link]:
    return [
        *stacked(f"{ours}/attention_norm/scale", f"{theirs}.norm1.weight", depth),
        *stacked(f"{ours}/attention_norm/bias", f"{theirs}.norm1.bias", depth),
        *stacked(f"{ours}/attention/qkv/kernel", f"{theirs}.attn.qkv.weight", depth, "linear"),
        *stacked(f"{ours}/attention/qkv/bias", f"{theirs}.attn.qkv.bias", depth),
        *stacked(f"{ours}/attention/out/kernel", f"{theirs}.attn.proj.weight", depth, "linear"),
        *stacked(f"{ours}/attention/out/bias", f"{theirs}.attn.proj.bias", depth),
        *stacked(f"{ours}/mlp_norm/scale", f"{theirs}.norm2.weight", depth),
        *stacked(f"{ours}/mlp_norm/bias", f"{theirs}.norm2.bias", depth),
        *stacked(f"{ours}/mlp/up/kernel", f"{theirs}.mlp.fc1.weight", depth, "linear"),
        *stacked(f"{ours}/mlp/up/bias", f"{theirs}.mlp.fc1.bias", depth),
        *stacked(f"{ours}/mlp/down/kernel", f"{theirs}.mlp.fc2.weight", depth, "linear"),
        *stacked(f"{ours}/mlp/down/bias", f"{theirs}.mlp.fc2.bias", depth),
    ]


IMAGE_LINKS = {
    "vision_transformer": _vision_transformer,
    "resnet": lambda vision: (openai.resnet_links(vision), ""),
}
