"""Every setting there is, as frozen dataclasses: a run is one `TrainConfig`, an architecture one `ModelConfig`."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the channels, on a 0 to 1 scale
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]
Dtype = Literal["float32", "bfloat16"]
Interpolation = Literal["bicubic", "bilinear", "nearest"]
ResizeMode = Literal["shortest", "longest", "squash"]
INTERPOLATIONS, RESIZE_MODES = get_args(Interpolation), get_args(ResizeMode)
Remat = Literal["none", "dots", "attention", "full"]
AttentionKind = Literal["auto", "plain", "cudnn"]


# --------------------------------------------------------------------------- architectures


@dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig:
    """The image tower as a vision transformer (arXiv:2010.11929, as CLIP changed it)."""

    image_size: int = 224  # pixels on each side
    patch_size: int = 32  # pixels on each side
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: Activation = "gelu"
    norm_epsilon: float = 1e-5
    class_token: bool = True
    pool: Literal["class", "mean", "map"] = "class"  # mean: of patches; map: attention (SigLIP)
    pool_before_norm: bool = False  # CLIPA pools, then normalises; CLIP does the reverse
    pre_norm: bool = True  # LayerNorm between the embeddings and the first block
    patch_bias: bool = False
    projection: bool = True  # SigLIP has none: its pooled vector is the embedding
    position: Literal["learned", "sincos2d"] = "learned"
    patch_dropout: float = 0.0  # share of patches left out in training (FLIP, arXiv:2212.00794)

    def __post_init__(self):
        if not 0 < self.patch_size <= self.image_size:
            raise ValueError(f"patch_size={self.patch_size} must be from 1 to {self.image_size}")
        _divides("width", self.width, "heads", self.heads)
        if self.pool == "class" and not self.class_token:
            raise ValueError('pool="class" needs class_token=True')
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"patch_dropout={self.patch_dropout} must be at least 0 and below 1")

    @property
    def grid(self) -> int:
        """Patches on each side. What is left of a last one is cropped (SigLIP's 384 by 14)."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """The image tower as CLIP's modified ResNet (arXiv:2103.00020, section 2.4)."""

    image_size: int = 224  # pixels on each side
    width: int = 64  # channels after the stem
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)  # blocks of each stage
    heads: int = 32  # of the attention pooling
    batch_norm_momentum: float = 0.9

    def __post_init__(self):
        _divides("image_size", self.image_size, "the stride", 32)
        _divides("width * 32", self.width * 32, "heads", self.heads)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text tower: a transformer over tokens, read at one position."""

    context_length: int = 77  # tokens
    vocab_size: int = 49_408
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_width: int = 2048
    activation: Activation = "gelu"
    norm_epsilon: float = 1e-5
    causal: bool = True
    pool: Literal["argmax", "last", "eos"] = "argmax"  # argmax: at the largest id; eos: at end_id
    end_id: int | None = None  # of the token at whose first occurrence pool="eos" reads
    projection: bool = True  # False: the text is read as it is, so width is embed_dim
    projection_bias: bool = False

    def __post_init__(self):
        _divides("width", self.width, "heads", self.heads)
        if (self.pool == "eos") != (self.end_id is not None):
            raise ValueError(f'pool="{self.pool}" and end_id={self.end_id}: "eos" alone needs one')
        if self.end_id is not None and not 0 <= self.end_id < self.vocab_size:
            raise ValueError(f"end_id={self.end_id} must be from 0 to {self.vocab_size - 1}")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How an image file becomes the numbers that a model was trained on."""

    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"
    resize_size: int | None = None  # pixels before the centre crop; None: the image size
    fill: int = 0  # grey level of the padding that `longest` adds

    def __post_init__(self):
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(0 <= value <= 1 for value in values):
                raise ValueError(f"{name}={values} must be three numbers on a scale from 0 to 1")
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std} must be above 0 in each channel")
        for name, known in (("interpolation", INTERPOLATIONS), ("resize_mode", RESIZE_MODES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(known)}")
        if self.resize_size is not None and self.resize_size < 1:
            raise ValueError(f"resize_size={self.resize_size} must be at least 1 pixel")
        if not isinstance(self.fill, int) or not 0 <= self.fill <= 255:
            raise ValueError(f"fill={self.fill} must be a grey level from 0 to 255")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole CLIP model. `models/architectures.py` names the known ones."""

    name: str = "custom"
    embed_dim: int = 512
    vision: VisionTransformerConfig | ResNetConfig = field(default_factory=VisionTransformerConfig)
    text: TextConfig = field(default_factory=TextConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    tokenizer: Literal["clip", "sentencepiece", "siglip", "huggingface"] = "clip"
    init_logit_scale: float = math.log(1 / 0.07)  # natural logarithm of the multiplier
    init_logit_bias: float | None = None  # None: the model has no bias (softmax loss)
    dtype: Dtype = "float32"  # of the towers' matrix products
    remat: Remat = "none"
    unroll: int = 1  # blocks in one turn of the loop over a tower's blocks
    attention: AttentionKind = "auto"

    def __post_init__(self):
        if not self.text.projection and self.text.width != self.embed_dim:
            raise ValueError(
                f"text.projection=False needs text.width={self.text.width} to be "
                f"embed_dim={self.embed_dim}"
            )


def _divides(name: str, value: int, by_name: str, by: int):
    if by <= 0 or value % by:
        raise ValueError(f"{name}={value} must be a multiple of {by_name}={by}")


# ------------------------------------------------------------------------------------ a run


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model a run trains, and what it changes of the named architecture."""

    name: str = "ViT-B-32"  # `clip-jax models` lists the names
    dtype: Dtype = "bfloat16"  # of the towers' matrix products; parameters stay float32
    remat: Remat = "none"  # what the backward pass recomputes instead of keeping
    unroll: int = 1  # blocks in one turn of the loop over a tower's blocks: more compile longer
    attention: AttentionKind = "auto"  # auto: the fastest exact one on this backend
    image_size: int | None = None  # pixels; None: the architecture's
    context_length: int | None = None  # tokens; None: the architecture's
    vocab_size: int | None = None  # None: the tokenizer's
    patch_dropout: float | None = None  # None: the architecture's
    init_from: str | None = None  # a run directory or released weights (or their URL) to start from
    init_towers: Literal["both", "image", "text"] = "both"  # which towers init_from fills
    freeze: Literal["none", "image", "text"] = "none"  # tower that is not trained (LiT)
    unlocked_blocks: int = 0  # last blocks of the frozen tower that train, with its head


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The contrastive loss and how its similarity matrix is moved and held."""

    kind: Literal["softmax", "sigmoid"] = "softmax"
    distributed: Literal["replicated", "gather", "ring"] = "gather"  # between the devices
    tile: int | None = None  # rows' worth of similarities held at once in a device; None: all
    max_logit_scale: float = 100.0  # the multiplier is clamped to [1, this] after each step


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What training does to an image and a caption before the model sees them."""

    crop_scale: tuple[float, float] = (0.9, 1.0)  # share of the area that a crop keeps
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width to height of a crop
    flip: bool = False  # mirror half of the images; captions that say "left" become wrong
    color_jitter: tuple[float, float, float, float] | None = (
        None  # brightness, contrast, saturation, hue
    )
    color_jitter_prob: float = 0.8
    grayscale_prob: float = 0.0
    resize: Literal["exact", "fast"] = "exact"  # exact: Pillow's antialiased bicubic pixels
    text_mask: Literal["truncate", "random", "block"] = "truncate"  # of captions over length


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on, and how it reaches the devices."""

    source: tuple[str, ...] = (
        "shapes",
    )  # shapes, pairs:FILE.csv, tar:GLOB, folder:DIR (class folders), tfds:NAME, parquet:GLOB, ...
    weights: tuple[float, ...] | None = None  # of the sources; None: by their sizes
    eval_source: str | None = None  # None: the source's own test split
    eval_also: tuple[str, ...] = ()  # NAME=SOURCE each: more test data, measured as eval/NAME/...
    batch_size: int = 256  # pairs, over all devices
    accumulation: int = 1  # micro-batches in a batch; the loss still sees the whole batch
    image_column: str | None = None  # None: found by name (image, filepath, jpg, ...)
    caption_column: str | None = None  # None: found by name (caption, text, title, ...)
    label_column: str | None = None  # None: found by name (label, cls, class) if it holds numbers
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    data_dir: str = "data"  # where `shapes` and indexes are kept
    threads: int | None = None  # decoders in each process; None: one a core
    workers: int = 0  # processes that decode; 0: threads of the training process do
    prefetch: int = 2  # batches kept ready on the device
    max_bad_share: float = 0.01  # of samples that may be unreadable before the run stops
    max_image_pixels: int = 50_000_000  # larger images are refused as bombs


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How captions become token ids."""

    kind: Literal["auto", "sentencepiece", "clip", "siglip", "huggingface"] = (
        "auto"  # auto: the architecture's
    )
    path: str | None = None  # a tokenizer file; None with sentencepiece: train on the captions
    vocab_size: int = 4096  # of a SentencePiece model that is trained here, at most
    train_captions: int = 1_000_000  # captions that it is trained on, at most


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update rule and its schedule."""

    name: Literal["adamw", "lion", "adafactor", "muon"] = "adamw"
    learning_rate: float = 5e-4  # at the peak
    schedule: Literal["cosine", "constant", "linear", "rsqrt"] = "cosine"
    warmup_steps: int = 100
    final_learning_rate: float = 0.0
    cooldown_steps: int = 0  # of a line to the final rate that ends constant or rsqrt
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2  # not on gains, biases, position embeddings and the scale
    clip_norm: float | None = None  # global gradient norm; None: no clipping
    layer_decay: float | None = None  # learning rate's factor from a layer to the one below
    moment_dtype: Dtype = "float32"  # of the first moment, which every rule keeps
    ema_decay: float | None = None  # of an average of the variables; None: none is kept


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the devices are laid out. Batches are split over both axes, parameters over fsdp."""

    data: int = -1  # devices on this axis; -1: all that are left
    fsdp: int = 1
    slices: int = 1  # TPU slices or nodes that a slow network joins; they split `data`


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state is saved and what is kept."""

    every_steps: int | None = None  # None: by minutes alone
    every_minutes: float | None = 10.0  # None: by steps alone
    keep_last: int = 2
    keep_every_steps: int | None = None  # these are kept for ever
    keep_best_by: str | None = None  # a metric, such as eval/zero_shot_top1; its best is kept
    retry_seconds: float = 600.0  # how long a failing save is tried again before the run stops
    allow_change: tuple[str, ...] = ()  # settings that may differ from the run's when resuming


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured while training and after it."""

    every_steps: int | None = None  # in training; None: at the end alone; 0: never
    batch_size: int = 256  # pairs, over all devices
    max_samples: int | None = None  # None: the whole split
    zero_shot: bool = True  # where the source has classes
    retrieval: bool = True
    classes: str | None = None  # a text file of class names, one a line; None: the source's
    templates: str | None = None  # a text file of prompts with {}; None: the source's


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What a person sees."""

    every_steps: int = 10
    tensorboard: bool = True
    progress: bool = True  # a live line on a terminal
    report: bool = True  # report.html at the end
    profile_steps: tuple[int, int] | None = None  # first and last step of a profiler trace


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """When a step is not taken, and when a run gives up."""

    skip_nonfinite: bool = True  # leave out a step whose loss or gradient is not finite
    spike_factor: float | None = None  # leave out a gradient norm above this times its average
    spike_warmup_steps: int = 100  # steps that the average needs before it counts
    max_skipped_in_row: int = 20  # then the run stops
    hang_seconds: float = 1800.0  # without a step: print all stacks, leave with the retry code


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """Several processes. On TPU VMs, GKE, Slurm and Open MPI all of it is found by itself."""

    coordinator: str | None = None  # host:port of process 0
    processes: int | None = None
    process_index: int | None = None
    timeout_seconds: float = 300.0  # for all processes to come


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A run. `clip-jax train --config FILE` starts from FILE's `get_config()`."""

    workdir: str = "runs/default"  # the run directory; a run that is in it goes on
    seed: int = 0
    steps: int = 1000  # optimizer steps in all
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
