"""Tells by the names of tensors which tower a file holds that this package has not."""

import re
from collections.abc import Iterable

# The first that fits; a name is looked for in all of the file's. The names are those of open_clip 3.3.0
# with timm 1.0.28, of PEFT, and of Apple's own files.
MARKS = (
    (r"^image_encoder\.", "MobileCLIP under Apple's own names"),
    (r"^text_decoder\.|^visual\.attn_pool\.", "CoCa, which has attentional pooling and a decoder"),
    (
        r"^text\.transformer\.(embeddings|encoder|shared|embed_tokens|layers)\b|^text\.proj\.",
        "a text tower of Hugging Face (RoBERTa, XLM-R, mT5 or NLLB)",
    ),
    (r"^visual\.trunk\.patch_embed\.backbone\.", "a ViTamin image tower"),
    (r"^visual\.trunk\..*\b(token_mixer|conv_kxk|reparam_conv)\b", "a MobileCLIP image tower (FastViT)"),
    (r"^visual\.trunk\.stages\.\d+\.blocks\.\d+\.conv_dw\b", "a ConvNeXt image tower"),
    (r"^visual\.trunk\..*\brelative_position_bias_table$", "a Swin image tower"),
    (
        r"^visual\.trunk\..*\b(q_bias|q_proj\.weight|fc1_g\.weight|w1\.weight|freqs_cos)\b|^visual\.blocks\.",
        "an EVA image tower",
    ),
    (
        r"^visual\.trunk\.cls_token$|^visual\.(conv1|ln_pre)\..*\brope\b",
        "an image tower of timm with a class token, such as PE-Core's",
    ),
    (r"^visual\.trunk\.(?!patch_embed\.proj|pos_embed|blocks|norm\.|attn_pool)", "an image tower of timm"),
)  # fmt: skip
# What lies beside the weights of a model that another library has changed.
CHANGED = (
    (
        r"^base_model\.model\.|\blora_\w+",
        "weights inside of PEFT, such as LoRA: merge them (merge_and_unload) and save the result",
    ),
    (
        r"\.(qweight|qzeros|SCB|absmax|quant_map|weight_scale|weight_scale_inv|weight_packed|input_scale)$|quant_state",
        "quantised weights, which are not read: save the model in float16 or float32",
    ),
)
OWNED = re.compile(r"(.+\.)visual\.(conv1|trunk|class_embedding|proj)\b")
KNOWN = "known are ViT, ResNet and SigLIP image towers with CLIP's and SigLIP's text towers"


def refuse_changed_weights(names: Iterable[str], source: str):
    """Refuse a file whose weights are to be computed from several tensors.

    Raises:
      ValueError: naming what was done to them.
    """
    for name in names:
        for mark, kind in CHANGED:
            if re.search(mark, name):
                raise ValueError(f'{source} holds {kind} (its tensor "{name}" tells)')


def refuse_other_towers(names: Iterable[str], source: str):
    """Refuse a file with open_clip's names of which a tower is none of ours.

    Raises:
      ValueError: naming the tower, or the one that is missing.
    """
    names = list(names)
    for mark, kind in MARKS:
        found = next((name for name in names if re.search(mark, name)), None)
        if found is not None:
            raise ValueError(f'{source} holds {kind}, as its tensor "{found}" tells; {KNOWN}')
    owners = {found[1] for name in names if (found := OWNED.match(name))}
    if owners and not any(name.startswith("visual.") for name in names):
        raise ValueError(
            f"{source} holds tensors below {', '.join(sorted(owners))}: save those of one model, under "
            "its own names"
        )
    has_image = any(name.startswith("visual.") for name in names)
    has_text = any(name.endswith("token_embedding.weight") for name in names)
    if has_image != has_text:
        alone, missing = ("image", "text") if has_image else ("text", "image")
        raise ValueError(
            f"{source} holds the {alone} tower alone: there is no {missing} tower in it"
        )
    if not has_image:
        shown = ", ".join(sorted(names)[:3]) or "none"
        raise ValueError(f"{source} holds no CLIP model: its tensors are {shown}, ...; {KNOWN}")
