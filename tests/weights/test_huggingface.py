"""Tests of Hugging Face's names."""

from clip_jax.models.architectures import model_config
from clip_jax.weights import huggingface


def test_clip_has_the_names_of_clip_model():
    links = huggingface.links(model_config("ViT-B-32-quickgelu"))
    found = {link.theirs for link in links}
    assert len(found) == 398  # as in openai/clip-vit-base-patch32, without its two buffers
    assert {"vision_model.pre_layrnorm.weight", "visual_projection.weight",
            "text_projection.weight", "text_model.encoder.layers.11.self_attn.q_proj.bias",
            "vision_model.embeddings.class_embedding", "logit_scale"} <= found  # fmt: skip


def test_siglip_has_the_names_of_siglip_model():
    links = huggingface.links(model_config("ViT-B-16-SigLIP"))
    found = {link.theirs for link in links}
    assert {"vision_model.head.probe", "vision_model.head.attention.in_proj_weight",
            "vision_model.embeddings.patch_embedding.bias", "text_model.head.weight",
            "logit_bias"} <= found  # fmt: skip
    assert "vision_model.embeddings.class_embedding" not in found


def test_buffers_of_old_versions_are_no_weights():
    assert huggingface.is_no_weight("text_model.embeddings.position_ids")
    assert not huggingface.is_no_weight("text_model.embeddings.position_embedding.weight")
