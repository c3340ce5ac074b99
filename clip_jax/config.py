"""Every setting there is, as frozen dataclasses: a run is one `TrainConfig`, an architecture one `ModelConfig`."""

import math
from dataclasses import dataclass, field
from typing import Literal

from clip_jax.models.tower import TOWERS, ImageTower, TextTower, Tower

from clip_jax.registry import (  # isort: skip
    AboveOne, AtLeastOne, AxisSize, BelowOne, Bias, Count, Fraction, Grey, Hue, LogScale,
    NotNegative, Part, Positive, Seed, Settings, Share, Threads, Whole, Workers, resolve,
)  # fmt: skip

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the channels, on a 0 to 1 scale
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
INIT_LOGIT_SCALE = math.log(1 / 0.07)

Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]
Dtype = Literal["float32", "bfloat16"]
Interpolation = Literal["bicubic", "bilinear", "nearest"]
ResizeMode = Literal["shortest", "longest", "squash"]
Rounding = Literal["round", "floor"]
Remat = Literal["none", "dots", "attention", "full"]
AttentionKind = Literal["auto", "plain", "cudnn", "pallas"]


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(Settings, group="preprocess."):
    """How an image file becomes the numbers that a model was trained on."""

    mean: tuple[Share, Share, Share] = OPENAI_MEAN
    std: tuple[Part, Part, Part] = OPENAI_STD
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"
    resize_size: Count | None = None  # pixels before the centre crop; None: the image size
    # Of a centre crop's offset that is half a pixel: torchvision and open_clip round it to the even
    # number, transformers rounds it down.
    crop_offset: Rounding = "round"
    fill: Grey = 0  # grey level of the padding that `longest` adds
    exif_rotation: bool = False  # images are turned as their EXIF says


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """A whole CLIP model. `models/architectures.py` names the known ones."""

    name: str = "custom"
    embed_dim: Count = 512
    vision: ImageTower = field(default_factory=lambda: __getattr__("VisionTransformerConfig")())
    text: TextTower = field(default_factory=lambda: __getattr__("TextConfig")())
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    tokenizer: str = "clip"  # the kind that a run's `tokenizer.kind="auto"` means
    init_logit_scale: LogScale = INIT_LOGIT_SCALE  # natural logarithm of the multiplier
    init_logit_bias: Bias | None = None  # None: the model has no bias (softmax loss)
    dtype: Dtype = "float32"  # of the towers' matrix products
    remat: Remat = "none"
    unroll: Count | None = None  # blocks in one turn of the loop over them; None: by the device
    attention: AttentionKind = "auto"

    def __post_init__(self):
        super().__post_init__()
        for name, side in (("vision", self.vision), ("text", self.text)):
            fits = side.fixed_embed_dim in (None, self.embed_dim)
            what = f"must be {name}.width={side.fixed_embed_dim}, as {name}.projection=False"
            self.require(fits, "embed_dim", what)

    @property
    def towers(self) -> dict[str, Tower]:
        """The towers' configs, by the names of their parameters."""
        return {"image": self.vision, "text": self.text}


# A tower's config stands in its tower's file, which imports JAX; settings are read without it.
def __getattr__(name: str):
    for path in TOWERS.values():
        if path.endswith(f":{name}"):
            return resolve("config", path, TOWERS)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings, group="model."):
    """Which model a run trains, and what it changes of the named architecture."""

    name: str = "ViT-B-32"  # `clip-jax models` lists them; package.module:NAME is a ModelConfig
    dtype: Dtype = "bfloat16"  # of the towers' matrix products; parameters stay float32
    remat: Remat = "none"  # what the backward pass recomputes instead of keeping
    unroll: Count | None = (
        None  # blocks in one turn of their loop; None: all of up to 24 on GPUs, else 1
    )
    attention: AttentionKind = "auto"  # auto: the fastest exact one on this backend
    image_size: Count | None = None  # pixels; None: the architecture's
    context_length: Count | None = None  # tokens; None: the architecture's
    vocab_size: Count | None = None  # None: the tokenizer's
    patch_dropout: BelowOne | None = None  # None: the architecture's
    ghost_batch_norm: bool = False  # with data.accumulation: statistics of each micro-batch alone
    init_from: str | None = None  # a run directory or released weights (or their URL) to start from
    init_towers: Literal["both", "image", "text"] = "both"  # which towers init_from fills
    freeze: Literal["none", "image", "text"] = "none"  # tower that is not trained (LiT)
    unlocked_blocks: Whole = 0  # last blocks of the frozen tower that train, with its head

    def __post_init__(self):
        super().__post_init__()
        for ignored, name, why in (
            (self.freeze == "image", "patch_dropout", "model.freeze=image trains no patches"),
            (self.freeze == "none", "unlocked_blocks", "model.freeze=none trains all blocks"),
            (self.init_from is None, "init_towers", "model.init_from names no weights"),
        ):
            self.refuse_ignored(ignored, name, why)


@dataclass(frozen=True, kw_only=True)
class LossConfig(Settings, group="loss."):
    """The contrastive loss and how its similarity matrix is moved and held."""

    kind: str = "softmax"  # softmax, sigmoid or package.module:NAME
    terms: tuple[str, ...] = ()  # NAME=WEIGHT each: further losses that are added to it
    distributed: Literal["replicated", "gather", "ring"] = "gather"  # between the devices
    tile: Count | None = None  # rows' worth of similarities held at once in a device; None: all
    max_logit_scale: AtLeastOne = 100.0  # the multiplier is clamped to [1, this] after each step

    def __post_init__(self):
        super().__post_init__()
        fits = self.tile is None or self.distributed != "replicated"
        self.require(fits, "tile", 'needs loss.distributed="gather" or "ring"')


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Settings, group="data.augment."):
    """What training does to an image and a caption before the model sees them."""

    crop_scale: tuple[Part, Part] = (0.9, 1.0)  # share of the area that a crop keeps
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)  # width to height of a crop
    flip: bool = False  # mirror half of the images; captions that say "left" become wrong
    # brightness, contrast, saturation, hue
    color_jitter: tuple[NotNegative, NotNegative, NotNegative, Hue] | None = None
    color_jitter_prob: Share = 0.8  # share of the images that it changes
    grayscale_prob: Share = 0.0  # share of the images that lose their colors
    resize: Literal["exact", "fast"] = "exact"  # exact: Pillow's antialiased bicubic pixels
    text_mask: Literal["truncate", "random", "block"] = "truncate"  # of captions over length

    def __post_init__(self):
        super().__post_init__()
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            self.require(low <= high, name, "must be the smallest value and then the largest")
        no_jitter, why = self.color_jitter is None, "data.augment.color_jitter is None"
        self.refuse_ignored(no_jitter, "color_jitter_prob", why)


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings, group="data."):
    """What is trained on, and how it reaches the devices."""

    # shapes, pairs:FILE.csv, tar:GLOB, folder:DIR (class folders), tfds:NAME, parquet:GLOB, ...
    source: tuple[str, ...] = ("shapes",)
    weights: tuple[Positive, ...] | None = None  # of the sources; None: by their sizes
    # FILE for each source: samples that are kept; all: the whole source
    subset: tuple[str, ...] = ()
    eval_source: str | None = None  # None: the source's own test split
    eval_subset: str | None = None  # as subset, of what is evaluated on
    eval_also: tuple[str, ...] = ()  # NAME=SOURCE each: more test data, measured as eval/NAME/...
    batch_size: Count = 256  # pairs, over all devices
    accumulation: Count = 1  # micro-batches in a batch; the loss still sees the whole batch
    image_column: str | None = None  # None: found by name (image, filepath, jpg, ...)
    caption_column: str | None = None  # None: found by name (caption, text, title, ...)
    label_column: str | None = None  # None: found by name (label, cls, class) if it holds numbers
    group_rows: bool = True  # rows of a list or table with the same image are one sample
    caption_lines: bool | None = None  # lines of a .txt are captions; None: what its folder says
    separator: str | None = None  # of lists: comma, tab, semicolon, bar; None: what the header has
    quoting: Literal["csv", "none"] = "csv"  # of lists; none: a quote is a character like others
    image_folder: str | None = None  # where paths in lists start; None: the list's folder
    encoding: str | None = None  # of lists; None: UTF-8, or UTF-16 with a byte order mark
    exif_rotation: bool = False  # turn images as their EXIF says; open_clip does not
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    data_dir: str = "data"  # where `shapes` and indexes are kept
    # global: of all samples; block: of blocks of neighbours, read whole; auto: block behind URLs
    shuffle: Literal["auto", "global", "block"] = "auto"
    shuffle_window_mb: Count = 2048  # of blocks that are mixed, in all processes together
    # of tar shards: auto: none behind URLs in blocks where sizes.json or _stats.json are there
    index: Literal["auto", "always", "never"] = "auto"
    read_ahead_mb: Count = 4096  # of blocks that a process and its workers hold, at most
    cache_mb: Whole = 0  # of blocks kept under data_dir for later epochs and starts; 0: none
    # of training's JPEGs; gpu: by DALI on NVIDIA GPUs, whose pixels are rounded in other ways
    decode: Literal["cpu", "gpu"] = "cpu"
    threads: Threads | None = None  # decoders in each process; None: one a core
    workers: Workers = 0  # processes that decode; 0: threads of the training process do
    prefetch: Threads = 2  # batches kept ready on the device
    max_bad_share: Share = 0.01  # of samples that may be unreadable before the run stops
    max_image_pixels: Count = 50_000_000  # larger images are refused as bombs

    def __post_init__(self):
        super().__post_init__()
        on_gpu = self.decode == "gpu"
        why = "data.decode=gpu decodes in the training process, by data.threads"
        self.refuse_ignored(on_gpu, "workers", why)
        exact = not on_gpu or self.augment.resize == "exact"
        self.require(exact, "decode", "resizes as data.augment.resize=exact: leave it at that")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(Settings, group="tokenizer."):
    """How captions become token ids."""

    kind: str = "auto"  # auto: the architecture's; sentencepiece, clip, siglip, huggingface, clipa
    path: str | None = None  # a tokenizer file; None with sentencepiece: train on the captions
    vocab_size: Count = 4096  # of a SentencePiece model that is trained here, at most
    train_captions: Count = 1_000_000  # captions that it is trained on, at most


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Settings, group="optimizer."):
    """The update rule and its schedule."""

    name: str = "adamw"  # adamw, lion, adafactor, muon, one of optax's or package.module:NAME
    options: tuple[str, ...] = ()  # NAME=VALUE each: what else the optimizer takes, momentum=0.9
    learning_rate: Positive = 5e-4  # at the peak
    schedule: Literal["cosine", "constant", "linear", "rsqrt"] = "cosine"  # after the warm-up
    warmup_steps: Whole = 100  # of a line from zero to the peak
    final_learning_rate: NotNegative = 0.0  # at the last step
    cooldown_steps: Whole = 0  # of a line to the final rate that ends constant or rsqrt
    b1: BelowOne = 0.9  # decay of the first moment (of the momentum)
    b2: BelowOne = 0.98  # decay of the second moment
    eps: Positive = 1e-6  # added to the root of the second moment
    weight_decay: NotNegative = 0.2  # not on gains, biases and the scale
    decay_positions: bool = False  # position embeddings too, as open_clip; big_vision does not
    clip_norm: Positive | None = None  # global gradient norm; None: no clipping
    layer_decay: Part | None = None  # learning rate's factor from a layer to the one below
    moment_dtype: Dtype = "float32"  # of the first moment, which every rule keeps
    ema_decay: Fraction | None = None  # of an average of the variables; None: none is kept
    ema_warmup: bool = True  # the decay rises to it over the first steps
    shard_over_data: bool = False  # moments are split over the data axis too (ZeRO-1)

    def __post_init__(self):
        super().__post_init__()
        ends_high = self.schedule in ("constant", "rsqrt") and self.cooldown_steps == 0
        why = f"optimizer.schedule={self.schedule} gets there by optimizer.cooldown_steps alone"
        self.refuse_ignored(ends_high, "final_learning_rate", why)
        falls = self.final_learning_rate <= self.learning_rate
        self.require(falls, "final_learning_rate", "must be at most optimizer.learning_rate")


@dataclass(frozen=True, kw_only=True)
class MeshConfig(Settings, group="mesh."):
    """How the devices are laid out. Batches are split over both axes, parameters over fsdp."""

    data: AxisSize = -1  # devices on this axis; -1: all that are left
    fsdp: Count = 1  # devices that share one copy of the parameters
    slices: Count = 1  # TPU slices or nodes that a slow network joins; they split `data`


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Settings, group="checkpoint."):
    """When the state is saved and what is kept."""

    every_steps: Count | None = None  # None: by minutes alone
    every_minutes: Positive | None = 10.0  # None: by steps alone
    keep_last: Count = 2  # the newest checkpoints that are kept
    keep_every_steps: Count | None = None  # these are kept for ever
    keep_best_by: str | None = None  # a metric, such as eval/zero_shot_top1; its best is kept
    # how long a failing save is tried again before the run stops
    retry_seconds: NotNegative = 600.0
    allow_change: tuple[str, ...] = ()  # settings that may differ from the run's when resuming


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Settings, group="evaluation."):
    """What is measured while training and after it."""

    every_steps: Whole | None = None  # in training; None: at the end alone; 0: never
    batch_size: Count = 256  # pairs, over all devices
    max_samples: Count | None = None  # None: the whole split
    probe_source: str | None = None  # a training set with labels, for knn, few_shot, linear_probe
    probe_samples: Count | None = None  # of it at most, at even distances; None: all
    # zero_shot, retrieval, macro_f1, ... (docs/evaluate.md) or package.module:NAME; each where the
    # data have what it needs
    metrics: tuple[str, ...] = ("loss", "retrieval", "zero_shot")
    classes: str | None = None  # a file of class names, one a line, or imagenet; None: the source's
    templates: str | None = (
        None  # a file of prompts with {} or {c}, or imagenet; None: the source's
    )


@dataclass(frozen=True, kw_only=True)
class LoggingConfig(Settings, group="logging."):
    """What a person sees."""

    every_steps: Count = 10  # steps from one logged step to the next
    loggers: tuple[str, ...] = ("jsonl", "tensorboard")  # jsonl, tensorboard, wandb, module:NAME
    progress: bool = True  # a live line on a terminal, a line now and then in a file
    report: bool = True  # report.html at the end, and similarity matrices for it on the way
    profile_steps: tuple[Count, Count] | None = None  # first and last step of a profiler trace
    hooks: tuple[str, ...] = ()  # package.module:NAME each: called after every step

    def __post_init__(self):
        super().__post_init__()
        first, last = self.profile_steps or (1, 1)
        self.require(first <= last, "profile_steps", "must be the first and then the last step")


@dataclass(frozen=True, kw_only=True)
class HealthConfig(Settings, group="health."):
    """When a step is not taken, and when a run gives up."""

    skip_nonfinite: bool = True  # skip a step whose loss, gradient or update is not finite
    spike_factor: AboveOne | None = None  # skip a gradient norm above this times its average
    spike_warmup_steps: Whole = 100  # steps that the average needs before it counts
    max_skipped_in_row: Count = 20  # then the run stops
    hang_seconds: Positive = 1800.0  # without a step: print all stacks, leave with the retry code

    def __post_init__(self):
        super().__post_init__()
        spikes_pass, why = self.spike_factor is None, "health.spike_factor is None"
        self.refuse_ignored(spikes_pass, "spike_warmup_steps", why)


@dataclass(frozen=True, kw_only=True)
class DistributedConfig(Settings, group="distributed."):
    """Several processes. On TPU VMs, GKE, Slurm and Open MPI these are detected."""

    coordinator: str | None = None  # host:port of process 0
    processes: Count | None = None  # of the job
    process_index: Whole | None = None  # of this process, from 0
    timeout_seconds: Positive = 300.0  # for all processes to come


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """A run. `clip-jax train --config FILE` starts from FILE's `get_config()`."""

    workdir: str = "runs/default"  # the run directory; a run that is in it is resumed
    seed: Seed = 0  # of the initial weights, the order of the data, augmentation and dropout
    steps: Count = 1000  # optimizer steps in all
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
