"""Tests of big_vision's names."""

from clip_jax.models.architectures import model_config
from clip_jax.weights import big_vision


def test_the_root_is_found_from_the_file():
    config = model_config("ViT-B-16-SigLIP")
    plain = {link.theirs for link in big_vision.links(config, {})}
    rooted = {link.theirs for link in big_vision.links(config, {"params/t": (1,)})}
    assert rooted == {f"params/{name}" for name in plain}
    assert {"t", "b", "img/MAPHead_0/probe", "txt/head/kernel", "img/embedding/kernel",
            "img/Transformer/encoderblock_11/MultiHeadDotProductAttention_0/value/bias",
            "txt/Encoder_0/encoder_norm/scale"} <= plain  # fmt: skip


def test_the_optimizers_state_is_no_weight():
    assert big_vision.is_no_weight("opt/0/mu/img/embedding/kernel")
    assert not big_vision.is_no_weight("params/t")
