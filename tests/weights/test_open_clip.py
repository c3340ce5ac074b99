"""Tests of open_clip's names."""

from clip_jax.models.architectures import model_config
from clip_jax.weights import open_clip


def test_siglip_has_timms_names_and_a_bias():
    found = {link.theirs for link in open_clip.links(model_config("ViT-B-16-SigLIP"))}
    assert {"visual.trunk.pos_embed", "visual.trunk.attn_pool.kv.weight", "logit_bias",
            "visual.trunk.blocks.11.mlp.fc2.bias", "visual.trunk.attn_pool.latent",
            "text.text_projection.weight", "text.transformer.resblocks.11.attn.in_proj_bias",
            "text.positional_embedding", "text.ln_final.weight"} <= found  # fmt: skip
    assert not any(name.startswith(("transformer.", "token_embedding")) for name in found)
