"""Hugging Face's names for the parts of CLIPModel and SiglipModel."""

from clip_jax.config import ModelConfig
from clip_jax.models.towers.vision_transformer import VisionTransformerConfig
from clip_jax.weights.mapping import Link, known_tower, stacked
from clip_jax.weights.openai import linear, norm


def links(config: ModelConfig) -> list[Link]:
    """The table of names of a whole model."""
    check_towers(config)
    is_siglip = config.vision.pool == "map"
    scalar = "lead" if is_siglip else "same"
    found = [
        *(_siglip_image if is_siglip else _clip_image)(config.vision),
        *_blocks("params/image/transformer", "vision_model", config.vision.depth),
        Link("params/text/token_embedding", "text_model.embeddings.token_embedding.weight"),
        Link("params/text/position_embedding", "text_model.embeddings.position_embedding.weight"),
        *_blocks("params/text/transformer", "text_model", config.text.depth),
        *norm("params/text/post_norm", "text_model.final_layer_norm"),
        Link("params/logit_scale", "logit_scale", scalar),
    ]
    if is_siglip:
        found += linear("params/text/projection", "text_model.head")
        return [*found, Link("params/logit_bias", "logit_bias", scalar)]
    return [*found, Link("params/text/projection/kernel", "text_projection.weight", "linear")]


def check_towers(config: ModelConfig):
    """Refuse towers that neither CLIPModel nor SiglipModel has."""
    known_tower("Hugging Face transformers", ("vision_transformer",), config.vision)
    known_tower("Hugging Face transformers", ("text_transformer",), config.text)


def is_no_weight(name: str) -> bool:
    """Buffers that older versions saved."""
    return name.endswith("position_ids")


def _clip_image(vision: VisionTransformerConfig) -> list[Link]:
    where = "vision_model.embeddings"
    return [
        Link("params/image/patch_embedding/kernel", f"{where}.patch_embedding.weight", "conv"),
        Link("params/image/class_embedding", f"{where}.class_embedding"),
        Link("params/image/position_embedding", f"{where}.position_embedding.weight"),
        *norm("params/image/pre_norm", "vision_model.pre_layrnorm"),  # sic
        *norm("params/image/post_norm", "vision_model.post_layernorm"),
        Link("params/image/projection/kernel", "visual_projection.weight", "linear"),
    ]


def _siglip_image(vision: VisionTransformerConfig) -> list[Link]:
    where, pool, head = "vision_model.embeddings", "params/image/pool", "vision_model.head"
    weight, bias = f"{head}.attention.in_proj_weight", f"{head}.attention.in_proj_bias"
    found = [
        Link("params/image/patch_embedding/kernel", f"{where}.patch_embedding.weight", "conv"),
        Link("params/image/patch_embedding/bias", f"{where}.patch_embedding.bias"),
        Link("params/image/position_embedding", f"{where}.position_embedding.weight"),
        *norm("params/image/post_norm", "vision_model.post_layernorm"),
        Link(f"{pool}/probe", f"{head}.probe"),
        Link(f"{pool}/query/kernel", weight, "linear", rows=(0, 1, 3)),
        Link(f"{pool}/query/bias", bias, rows=(0, 1, 3)),
        Link(f"{pool}/key_value/kernel", weight, "linear", rows=(1, 3, 3)),
        Link(f"{pool}/key_value/bias", bias, rows=(1, 3, 3)),
        *linear(f"{pool}/out", f"{head}.attention.out_proj"),
        *norm(f"{pool}/norm", f"{head}.layernorm"),
        *linear(f"{pool}/mlp/up", f"{head}.mlp.fc1"),
        *linear(f"{pool}/mlp/down", f"{head}.mlp.fc2"),
    ]
    return found


def _blocks(ours: str, theirs: str, depth: int) -> list[Link]:
    ours, theirs = f"{ours}/blocks", f"{theirs}.encoder.layers.{{}}"
    attention, qkv = f"{theirs}.self_attn", f"{ours}/attention/qkv"
    found = []
    for slot, name in enumerate(("q_proj", "k_proj", "v_proj")):
        at = {"depth": depth, "slot": (slot, 3)}
        found += stacked(f"{qkv}/kernel", f"{attention}.{name}.weight", form="linear", **at)
        found += stacked(f"{qkv}/bias", f"{attention}.{name}.bias", **at)
    return [
        *found,
        *stacked(f"{ours}/attention/out/kernel", f"{attention}.out_proj.weight", depth, "linear"),
        *stacked(f"{ours}/attention/out/bias", f"{attention}.out_proj.bias", depth),
        *stacked(f"{ours}/attention_norm/scale", f"{theirs}.layer_norm1.weight", depth),
        *stacked(f"{ours}/attention_norm/bias", f"{theirs}.layer_norm1.bias", depth),
        *stacked(f"{ours}/mlp_norm/scale", f"{theirs}.layer_norm2.weight", depth),
        *stacked(f"{ours}/mlp_norm/bias", f"{theirs}.layer_norm2.bias", depth),
        *stacked(f"{ours}/mlp/up/kernel", f"{theirs}.mlp.fc1.weight", depth, "linear"),
        *stacked(f"{ours}/mlp/up/bias", f"{theirs}.mlp.fc1.bias", depth),
        *stacked(f"{ours}/mlp/down/kernel", f"{theirs}.mlp.fc2.weight", depth, "linear"),
        *stacked(f"{ours}/mlp/down/bias", f"{theirs}.mlp.fc2.bias", depth),
    ]
