"""How far embeddings, logits, pixels and tokens are from open_clip's and transformers'.

    python benchmarks/parity.py docs/parity.md            # every family, about 20 minutes
    python benchmarks/parity.py --quick                   # small ones, printed

It needs torch, open_clip and transformers beside clip_jax; `make parity` installs them. The
reference library makes random weights, clip_jax imports them, and both see the same inputs in
float32. Nothing is downloaded.
"""

import argparse
import dataclasses
import io
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import open_clip
import torch
import transformers
from parity_inputs import image_files, varied_texts
from PIL import Image

import clip_jax.weights.huggingface as huggingface_names
import clip_jax.weights.open_clip as open_clip_names
from clip_jax.config import AugmentConfig, ModelConfig, PreprocessConfig
from clip_jax.data.images.transforms import eval_image, train_image
from clip_jax.data.tokenizers.registry import ClipTokenizer
from clip_jax.models.architectures import model_config
from clip_jax.models.clip import CLIP
from clip_jax.weights import huggingface_config, open_clip_config
from clip_jax.weights.mapping import export_tensors, import_variables

FAMILIES = (
    "RN50", "RN50-quickgelu", "RN101", "RN50x4", "RN50x16", "ViT-S-32", "ViT-M-16",
    "ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16", "ViT-B-16-plus-240", "ViT-L-14-quickgelu",
    "ViT-L-14-336", "ViT-L-14-CLIPA", "ViT-B-16-SigLIP", "ViT-B-16-SigLIP-384",
    "ViT-L-16-SigLIP-256", "ViT-SO400M-14-SigLIP-384", "ViT-B-32-SigLIP2-256",
    "ViT-SO400M-16-SigLIP2-256", "ViT-H-14",
)  # fmt: skip
IN_TRANSFORMERS = (
    "ViT-B-32-quickgelu", "ViT-B-16", "ViT-L-14-336-quickgelu", "ViT-B-16-SigLIP2",
    "ViT-SO400M-14-SigLIP-384",
)  # fmt: skip
QUICK = ("RN50", "ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16-SigLIP")


class TorchTensors:
    """A torch state dict as a file of tensors."""

    def __init__(self, model: torch.nn.Module):
        self._state = model.state_dict()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._state.items()}

    def read(self, name: str) -> np.ndarray:
        return self._state[name].numpy()


class Difference(NamedTuple):
    """Largest absolute differences over a batch, and whether the weights came back unchanged."""

    image: float
    text: float
    logits: float
    same_bits: bool


def randomize(model: torch.nn.Module):
    """Libraries start biases at 0 and gains at 1, which would hide a mistake in their names."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.ndim == 1 and tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.add_(0.1 * (noise.abs() if name.endswith("running_var") else noise))


def inputs(config: ModelConfig, batch: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images, and texts of several lengths."""
    rng = np.random.default_rng(0)
    size, length = config.vision.image_size, config.text.context_length
    images_BHWC = rng.normal(size=(batch, size, size, 3)).astype(np.float32)
    tokens_BL = np.zeros((batch, length), np.int32)
    for row, words in zip(tokens_BL, np.linspace(1, length - 1, batch).astype(int)):
        row[:words] = rng.integers(1, config.text.vocab_size - 1, words)
        row[words] = config.text.vocab_size - 1
    return images_BHWC, tokens_BL


def against(
    model: torch.nn.Module,
    config: ModelConfig,
    names,
    embed: Callable[[torch.Tensor, torch.Tensor], tuple],
    *,
    train: bool = False,
) -> Difference:
    """Import a reference model's weights and compare what both make of the same batch.

    Args:
      model: the reference.
      config: its architecture.
      names: the module of weights that has its names.
      embed: from normalised images (B, 3, H, W) and tokens to unit vectors of both and logits.
      train: with batch statistics of this very batch, where the model has them.
    """
    randomize(model)
    model.train(train)
    links = names.links(config)
    variables = import_variables(
        config, links, TorchTensors(model), ignored=names.is_no_weight, source="the reference"
    )
    state, back = model.state_dict(), export_tensors(variables, links)
    same_bits = all(np.array_equal(back[name], state[name].numpy()) for name in back)
    del back
    images_BHWC, tokens_BL = inputs(config)
    with torch.no_grad():
        theirs = embed(
            torch.from_numpy(images_BHWC).permute(0, 3, 1, 2), torch.from_numpy(tokens_BL).long()
        )

    @jax.jit
    def ours(variables, images_BHWC, tokens_BL):
        mutable = ["batch_stats"] if train else False
        out = CLIP(config).apply(variables, images_BHWC, tokens_BL, train=train, mutable=mutable)
        out = out[0] if train else out
        bias = 0.0 if out.logit_bias is None else out.logit_bias
        logits_BB = out.logit_scale * jax.numpy.matmul(out.image, out.text.T, precision="highest")
        return out.image, out.text, logits_BB + bias

    differences = [
        float(np.abs(np.asarray(a) - b.numpy()).max())
        for a, b in zip(ours(variables, images_BHWC, tokens_BL), theirs)
    ]
    return Difference(*differences, same_bits)


# ----------------------------------------------------------------------------------- references


def against_open_clip(config: ModelConfig, *, train: bool = False) -> Difference:
    """Compare with the model that open_clip makes of the config that clip_jax writes."""
    content = open_clip_config.write_config(config)["model_cfg"]
    is_custom = content.pop("custom_text", False)
    kind = open_clip.model.CustomTextCLIP if is_custom else open_clip.model.CLIP
    torch.manual_seed(0)
    model = kind(**content)

    def embed(images, tokens):
        image = model.encode_image(images, normalize=True)
        text = model.encode_text(tokens, normalize=True)
        logits = model.logit_scale.exp() * image @ text.T
        return image, text, logits if model.logit_bias is None else logits + model.logit_bias

    return against(model, config, open_clip_names, embed, train=train)


def against_transformers(config: ModelConfig) -> Difference:
    """Compare with the model that transformers makes of the config that clip_jax writes."""
    content = huggingface_config.write_config(config)
    kind = transformers.SiglipModel if content["model_type"] == "siglip" else transformers.CLIPModel
    torch.manual_seed(0)
    model = kind(kind.config_class(**content))

    def embed(images, tokens):
        out = model(input_ids=tokens, pixel_values=images)
        return out.image_embeds, out.text_embeds, out.logits_per_image

    return against(model, config, huggingface_names, embed)


# --------------------------------------------------------------------------------------- pixels


def pixel_difference(data: bytes, preprocess: PreprocessConfig, size: int = 224) -> float:
    """Mean absolute difference to open_clip's evaluation transform, in steps of 1/255."""
    transform = open_clip.image_transform(
        size,
        is_train=False,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        interpolation=preprocess.interpolation,
        resize_mode=preprocess.resize_mode,
        fill_color=preprocess.fill,
    )
    theirs_HWC = 255 * transform(Image.open(io.BytesIO(data))).permute(1, 2, 0).numpy()
    theirs_HWC = np.rint(theirs_HWC)  # what dividing by 255 in float32 has changed
    ours_HWC = eval_image(data, preprocess, size, 10_000_000)
    return float(np.abs(ours_HWC - theirs_HWC).mean())


def crop_difference(data: bytes, size: int = 224) -> float:
    """The same for training: a crop of everything, where nothing is left to chance."""
    width, height = Image.open(io.BytesIO(data)).size
    whole = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(width / height, width / height))
    rng = np.random.default_rng(0)
    ours_HWC = train_image(data, rng, whole, PreprocessConfig(), size, 10_000_000)
    image = Image.open(io.BytesIO(data)).resize((size, size), Image.Resampling.BICUBIC)
    return float(np.abs(ours_HWC - np.asarray(image.convert("RGB"), float)).mean())


def processor_difference(size: tuple[int, int], crop: int) -> float:
    """The same to transformers' CLIPImageProcessor, of noise that is cropped and not resized."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    shortest = min(size)
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": shortest}, crop_size=crop, do_rescale=False, do_normalize=False
    )
    theirs_HWC = np.asarray(processor(image)["pixel_values"][0]).transpose(1, 2, 0)
    file = io.BytesIO()
    image.save(file, "PNG")
    preprocess = PreprocessConfig(resize_size=shortest, crop_offset="floor")
    ours_HWC = eval_image(file.getvalue(), preprocess, crop, 10_000_000)
    return float(np.abs(ours_HWC - theirs_HWC.astype(float)).mean())


# --------------------------------------------------------------------------------------- tokens


def different_tokens(count: int, context_length: int = 77) -> int:
    """How many of `count` varied texts have other ids than open_clip gives them."""
    texts = varied_texts(count)
    theirs = open_clip.tokenizer.SimpleTokenizer(context_length=context_length)(texts).numpy()
    return int((ClipTokenizer(context_length)(texts) != theirs).any(axis=1).sum())


# ---------------------------------------------------------------------------------------- table


def model_rows(names: tuple[str, ...], compare: Callable[..., Difference], library: str):
    for name in names:
        config = model_config(name)
        modes = (False, True) if name.startswith("RN") else (False,)
        for train in modes:
            found = compare(config, train=train) if train else compare(config)
            print(f"{library:12} {name:28} {'train' if train else '':6}", *found, file=sys.stderr)
            shown = f"{name}, batch statistics" if train else name
            numbers = " | ".join(f"{value:.1e}" for value in found[:3])
            yield f"| {shown} | {library} | {numbers} | {'yes' if found.same_bits else 'no'} |"


BEYOND = (
    "",
    "Beyond open_clip: transformers turns an image into RGB before it resizes, so palette, GIF and one-bit images differ from",
    "its image processors (by 7 of 255 in the mean for a palette, 55 for one bit; alpha is laid on white by transformers 5.24",
    "and dropped by open_clip and clip_jax). Of a margin of 3, 7, 11, ... pixels transformers crops one less above and to the left than",
    'open_clip: weights of transformers are loaded with `crop_offset="floor"`, which does the same. clip_jax scales 16-bit files to 8',
    "bits; open_clip and transformers clip them to white, 138 of 255 away.",
)


def report(quick: bool) -> str:
    small = QUICK if quick else None
    lines = [
        "# Parity with open_clip and transformers",
        "",
        "Made by `python benchmarks/parity.py docs/parity.md` "
        f"(open_clip {open_clip.__version__}, transformers {transformers.__version__}, "
        f"torch {torch.__version__}, jax {jax.__version__}, CPU, float32).",
        "",
        "Largest absolute differences over 4 images and 4 texts of several lengths, with the "
        "reference's random weights. Bit-identical: exporting the imported weights gives every tensor "
        "back unchanged.",
        "",
        "| Model | Reference | Image embedding | Text embedding | Logits | Bit-identical |",
        "|---|---|---|---|---|---|",
        *model_rows(small or FAMILIES, against_open_clip, "open_clip"),
        *model_rows(small[2:3] if small else IN_TRANSFORMERS, against_transformers, "transformers"),
        "",
        "Mean absolute difference of pixels to open_clip's evaluation transform at 224, in steps "
        "of 1/255, and of a whole-image crop to Pillow's bicubic resize. Where open_clip pads a CMYK "
        "or palette image to a square it pads inks or indices, so that another colour comes out; "
        "clip_jax pads with the grey that its config names.",
        *BEYOND,
        "",
        "| File | Shortest side | Longest side | Squashed | Crop |",
        "|---|---|---|---|---|",
    ]
    for name, data in image_files().items():
        cells = [
            pixel_difference(data, dataclasses.replace(PreprocessConfig(), resize_mode=mode))
            for mode in ("shortest", "longest", "squash")
        ]
        cells.append(crop_difference(data))
        lines.append(f"| {name} | " + " | ".join(f"{cell:.4f}" for cell in cells) + " |")
    count = 2_000 if quick else 20_000
    lines += [
        "",
        f"Token ids: {different_tokens(count)} of {count:,} varied texts differ from open_clip's.",
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", nargs="?", help="the file to write; none: print")
    parser.add_argument("--quick", action="store_true", help="small models and fewer texts")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    text = report(arguments.quick)
    if arguments.out is None:
        print(text)
        return
    with tempfile.NamedTemporaryFile("w", delete=False, dir=Path(arguments.out).parent) as file:
        file.write(text)
    Path(file.name).replace(arguments.out)


if __name__ == "__main__":
    main()
