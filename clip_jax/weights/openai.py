"""OpenAI's names for the parts of a CLIP model, which open_clip took over."""

import itertools

from clip_jax.config import ModelConfig
from clip_jax.models.towers.resnet import ResNetConfig
from clip_jax.models.towers.vision_transformer import VisionTransformerConfig
from clip_jax.weights.mapping import Link, known_tower, stacked


def is_no_weight(name: str) -> bool:
    """Numbers that OpenAI's archives hold beside the weights, and torch's batch counters."""
    beside = ("input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask")
    return name in beside or name.endswith("num_batches_tracked")


def vision_transformer_links(vision: VisionTransformerConfig) -> list[Link]:
    """The table of names of a vision transformer with a class token."""
    found = [
        Link("params/image/patch_embedding/kernel", "visual.conv1.weight", "conv"),
        Link("params/image/class_embedding", "visual.class_embedding"),
        *norm("params/image/post_norm", "visual.ln_post"),
        *block_links("params/image/transformer", "visual.transformer.resblocks", vision.depth),
        Link("params/image/projection/kernel", "visual.proj"),
    ]
    if vision.position == "learned":
        found.append(Link("params/image/position_embedding", "visual.positional_embedding"))
    if vision.pre_norm:
        found += norm("params/image/pre_norm", "visual.ln_pre")
    return found


def text_links(config: ModelConfig, prefix: str = "") -> list[Link]:
    """The table of names of a text tower; open_clip puts "text." before some."""
    text = config.text
    known_tower("open_clip", ("text_transformer",), text)
    found = [
        Link("params/text/token_embedding", f"{prefix}token_embedding.weight"),
        Link("params/text/position_embedding", f"{prefix}positional_embedding"),
        *block_links("params/text/transformer", f"{prefix}transformer.resblocks", text.depth),
        *norm("params/text/post_norm", f"{prefix}ln_final"),
    ]
    if not text.projection:
        return found
    if text.projection_bias:
        return found + linear("params/text/projection", f"{prefix}text_projection")
    return [*found, Link("params/text/projection/kernel", f"{prefix}text_projection")]


def block_links(ours: str, theirs: str, depth: int) -> list[Link]:
    """The table of names of a stack of transformer blocks."""
    ours, theirs = f"{ours}/blocks", f"{theirs}.{{}}"
    return [
        *stacked(f"{ours}/attention_norm/scale", f"{theirs}.ln_1.weight", depth),
        *stacked(f"{ours}/attention_norm/bias", f"{theirs}.ln_1.bias", depth),
        *stacked(f"{ours}/attention/qkv/kernel", f"{theirs}.attn.in_proj_weight", depth, "linear"),
        *stacked(f"{ours}/attention/qkv/bias", f"{theirs}.attn.in_proj_bias", depth),
        *stacked(f"{ours}/attention/out/kernel", f"{theirs}.attn.out_proj.weight", depth, "linear"),
        *stacked(f"{ours}/attention/out/bias", f"{theirs}.attn.out_proj.bias", depth),
        *stacked(f"{ours}/mlp_norm/scale", f"{theirs}.ln_2.weight", depth),
        *stacked(f"{ours}/mlp_norm/bias", f"{theirs}.ln_2.bias", depth),
        *stacked(f"{ours}/mlp/up/kernel", f"{theirs}.mlp.c_fc.weight", depth, "linear"),
        *stacked(f"{ours}/mlp/up/bias", f"{theirs}.mlp.c_fc.bias", depth),
        *stacked(f"{ours}/mlp/down/kernel", f"{theirs}.mlp.c_proj.weight", depth, "linear"),
        *stacked(f"{ours}/mlp/down/bias", f"{theirs}.mlp.c_proj.bias", depth),
    ]


def resnet_links(vision: ResNetConfig) -> list[Link]:
    """The table of names of the modified ResNet."""
    found = []
    for i in range(3):
        found += _conv_norm(f"stem_{i}", f"visual.conv{i + 1}", f"visual.bn{i + 1}")
    for stage, depth in enumerate(vision.depths):
        for block in range(depth):
            ours, theirs = f"stage_{stage}_block_{block}", f"visual.layer{stage + 1}.{block}"
            for i in (1, 2, 3):
                found += _conv_norm(f"{ours}/conv_{i}", f"{theirs}.conv{i}", f"{theirs}.bn{i}")
            if block == 0:
                down = f"{theirs}.downsample"
                found += _conv_norm(f"{ours}/shortcut", f"{down}.0", f"{down}.1")
    found.append(
        Link("params/image/pool/position_embedding", "visual.attnpool.positional_embedding")
    )
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
        found += linear(f"params/image/pool/{ours}", f"visual.attnpool.{theirs}_proj")
    return found + linear("params/image/pool/out", "visual.attnpool.c_proj")


def norm(ours: str, theirs: str) -> list[Link]:
    return [Link(f"{ours}/scale", f"{theirs}.weight"), Link(f"{ours}/bias", f"{theirs}.bias")]


def linear(ours: str, theirs: str, kernel: str = "linear") -> list[Link]:
    return [
        Link(f"{ours}/kernel", f"{theirs}.weight", kernel),
        Link(f"{ours}/bias", f"{theirs}.bias"),
    ]


def _conv_norm(ours: str, conv: str, batch_norm: str) -> list[Link]:
    statistics = f"batch_stats/image/{ours}/norm"
    return [
        Link(f"params/image/{ours}/conv/kernel", f"{conv}.weight", "conv"),
        *norm(f"params/image/{ours}/norm", batch_norm),
        Link(f"{statistics}/mean", f"{batch_norm}.running_mean"),
        Link(f"{statistics}/var", f"{batch_norm}.running_var"),
    ]


def batch_counters(found: list[Link]) -> list[str]:
    """The names of torch's counters of batches, which strict loading asks for."""
    ends = (link.theirs for link in found if link.theirs.endswith(".running_mean"))
    return [name.replace("running_mean", "num_batches_tracked") for name in ends]


def depth_of(names: list[str], prefix: str) -> int:
    """How many layers a file has under `prefix`."""
    layers = (name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix))
    return len(set(itertools.filterfalse(lambda layer: not layer.isdigit(), layers)))
