"""big_vision's names for SigLIP, in the .npz files that Google released."""

from clip_jax.config import ModelConfig
from clip_jax.weights.mapping import Link, Shape, known_tower, stacked


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
        *_blocks("params/image", f"{image}/Transformer", config.vision.depth, shapes),
        *_norm("params/image/post_norm", f"{image}/Transformer/encoder_norm"),
        Link(f"{pool}/probe", f"{head}/probe"),
        *_dense(f"{pool}/query", f"{attention}/query"),
        *_dense(f"{pool}/key_value", f"{attention}/key", slot=0),
        *_dense(f"{pool}/key_value", f"{attention}/value", slot=1),
        *_dense(f"{pool}/out", f"{attention}/out"),
        *_norm(f"{pool}/norm", f"{head}/LayerNorm_0"),
        *_dense(f"{pool}/mlp/up", f"{head}/MlpBlock_0/Dense_0"),
        *_dense(f"{pool}/mlp/down", f"{head}/MlpBlock_0/Dense_1"),
        Link("params/text/token_embedding", f"{text}/Embed_0/embedding"),
        Link("params/text/position_embedding", f"{text}/pos_embedding", "lead"),
        *_blocks("params/text", f"{text}/Encoder_0", config.text.depth, shapes),
        *_norm("params/text/post_norm", f"{text}/Encoder_0/encoder_norm"),
        *_dense("params/text/projection", f"{text}/head"),
        Link("params/logit_scale", f"{root}t", "lead"),
        Link("params/logit_bias", f"{root}b", "lead"),
    ]
    return found


def is_no_weight(name: str) -> bool:
    """A training checkpoint holds the optimizer's state beside the parameters."""
    return name.startswith("opt/")


def _blocks(ours: str, theirs: str, depth: int, shapes: dict[str, Shape]) -> list[Link]:
    ours = f"{ours}/transformer/blocks"
    if f"{theirs}/encoderblock/LayerNorm_0/scale" in shapes:
        return _block(ours, f"{theirs}/encoderblock")  # stacked over there as well
    found = []
    for link in _block(ours, f"{theirs}/encoderblock_{{}}"):
        found += stacked(link.ours, link.theirs, depth, link.form, slot=link.slot)
    return found


def _block(ours: str, theirs: str) -> list[Link]:
    attention, mlp = f"{theirs}/MultiHeadDotProductAttention_0", f"{theirs}/MlpBlock_0"
    return [
        *_norm(f"{ours}/attention_norm", f"{theirs}/LayerNorm_0"),
        *_dense(f"{ours}/attention/qkv", f"{attention}/query", slot=0),
        *_dense(f"{ours}/attention/qkv", f"{attention}/key", slot=1),
        *_dense(f"{ours}/attention/qkv", f"{attention}/value", slot=2),
        *_dense(f"{ours}/attention/out", f"{attention}/out"),
        *_norm(f"{ours}/mlp_norm", f"{theirs}/LayerNorm_1"),
        *_dense(f"{ours}/mlp/up", f"{mlp}/Dense_0"),
        *_dense(f"{ours}/mlp/down", f"{mlp}/Dense_1"),
    ]


def _norm(ours: str, theirs: str) -> list[Link]:
    return [Link(f"{ours}/{name}", f"{theirs}/{name}") for name in ("scale", "bias")]


def _dense(ours: str, theirs: str, slot: int | None = None) -> list[Link]:
    return [Link(f"{ours}/{name}", f"{theirs}/{name}", slot=slot) for name in ("kernel", "bias")]
