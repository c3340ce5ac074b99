"""big_vision's names for SigLIP, in the .npz files that Google released."""

from clip_jax.config import ModelConfig
from clip_jax.models.towers.text_transformer import TextConfig
from clip_jax.models.towers.vision_transformer import VisionTransformerConfig
from clip_jax.weights.mapping import Form, Link, Shape, known_tower, stacked


def links(config: ModelConfig, shapes: dict[str, Shape]) -> list[Link]:
    """The table of names of a whole model; `shapes` tells how the file stacks its layers."""
    known_tower("big_vision", ("vision_transformer",), config.vision)
    known_tower("big_vision", ("text_transformer",), config.text)
    root = "params/" if any(name.startswith("params/") for name in shapes) else ""
    image, text, pool = f"{root}img", f"{root}txt", "params/image/pool"
    head = f"{image}/MAPHead_0"
    attention = f"{head}/MultiHeadDotProductAttention_0"
    found = [
        *_dense("params/image/patch_embedding", f"{image}/embedding"),
        Link("params/image/position_embedding", f"{image}/pos_embedding", "lead"),
        *_blocks("params/image", f"{image}/Transformer", config.vision, shapes),
        *_norm("params/image/post_norm", f"{image}/Transformer/encoder_norm"),
        Link(f"{pool}/probe", f"{head}/probe"),
        *_heads(f"{pool}/query", f"{attention}/query", config.vision.heads),
        *_heads(f"{pool}/key_value", f"{attention}/key", config.vision.heads, slot=(0, 2)),
        *_heads(f"{pool}/key_value", f"{attention}/value", config.vision.heads, slot=(1, 2)),
        *_merged_heads(f"{pool}/out", f"{attention}/out", config.vision.heads),
        *_norm(f"{pool}/norm", f"{head}/LayerNorm_0"),
        *_dense(f"{pool}/mlp/up", f"{head}/MlpBlock_0/Dense_0"),
        *_dense(f"{pool}/mlp/down", f"{head}/MlpBlock_0/Dense_1"),
        Link("params/text/token_embedding", f"{text}/Embed_0/embedding"),
        Link("params/text/position_embedding", f"{text}/pos_embedding", "lead"),
        *_blocks("params/text", f"{text}/Encoder_0", config.text, shapes),
        *_norm("params/text/post_norm", f"{text}/Encoder_0/encoder_norm"),
        *_dense("params/text/projection", f"{text}/head"),
        Link("params/logit_scale", f"{root}t", "lead"),
        Link("params/logit_bias", f"{root}b", "lead"),
    ]
    return found


def is_no_weight(name: str) -> bool:
    """A training checkpoint holds the optimizer's state beside the parameters."""
    return name.startswith("opt/")


def _blocks(
    ours: str, theirs: str, tower: VisionTransformerConfig | TextConfig, shapes: dict[str, Shape]
) -> list[Link]:
    ours = f"{ours}/transformer/blocks"
    if f"{theirs}/encoderblock/LayerNorm_0/scale" in shapes:
        return _block(ours, f"{theirs}/encoderblock", tower.heads)  # stacked over there as well
    found = []
    for link in _block(ours, f"{theirs}/encoderblock_{{}}", tower.heads):
        found += stacked(link.ours, link.theirs, tower.depth, link.form, slot=link.slot)
    return found


def _block(ours: str, theirs: str, heads: int) -> list[Link]:
    attention, mlp = f"{theirs}/MultiHeadDotProductAttention_0", f"{theirs}/MlpBlock_0"
    return [
        *_norm(f"{ours}/attention_norm", f"{theirs}/LayerNorm_0"),
        *_heads(f"{ours}/attention/qkv", f"{attention}/query", heads, slot=(0, 3)),
        *_heads(f"{ours}/attention/qkv", f"{attention}/key", heads, slot=(1, 3)),
        *_heads(f"{ours}/attention/qkv", f"{attention}/value", heads, slot=(2, 3)),
        *_merged_heads(f"{ours}/attention/out", f"{attention}/out", heads),
        *_norm(f"{ours}/mlp_norm", f"{theirs}/LayerNorm_1"),
        *_dense(f"{ours}/mlp/up", f"{mlp}/Dense_0"),
        *_dense(f"{ours}/mlp/down", f"{mlp}/Dense_1"),
    ]


def _norm(ours: str, theirs: str) -> list[Link]:
    return [Link(f"{ours}/{name}", f"{theirs}/{name}") for name in ("scale", "bias")]


def _dense(ours: str, theirs: str) -> list[Link]:
    return [Link(f"{ours}/{name}", f"{theirs}/{name}") for name in ("kernel", "bias")]


def _heads(ours: str, theirs: str, heads: int, slot: tuple[int, int] | None = None) -> list[Link]:
    """Queries, keys or values: the file has an axis of heads, and one of numbers of a head."""
    split = Form(
        lambda s: (*s[:-1], heads, s[-1] // heads),
        lambda t, s: t.reshape(s),
        lambda o: o.reshape(*o.shape[:-1], heads, -1),
    )
    return [
        Link(f"{ours}/{name}", f"{theirs}/{name}", split, slot=slot) for name in ("kernel", "bias")
    ]


def _merged_heads(ours: str, theirs: str, heads: int) -> list[Link]:
    """What follows attention: the inputs of its kernel are heads by numbers of a head."""
    split = Form(
        lambda s: (*s[:-2], heads, s[-2] // heads, s[-1]),
        lambda t, s: t.reshape(s),
        lambda o: o.reshape(*o.shape[:-2], heads, -1, o.shape[-1]),
    )
    return [
        Link(f"{ours}/kernel", f"{theirs}/kernel", split),
        Link(f"{ours}/bias", f"{theirs}/bias"),
    ]
