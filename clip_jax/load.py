"""`load`: a trained model, from a run directory or from released weights."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Literal

import jax

from clip_jax import storage
from clip_jax.config import ModelConfig
from clip_jax.data.tokenizers.registry import load_tokenizer
from clip_jax.models.architectures import model_config
from clip_jax.models.clip import CLIP
from clip_jax.models.tower import TOWERS, name_of
from clip_jax.runs import retention
from clip_jax.runs.directory import RunDirectory, can_hold_runs
from clip_jax.runs.trained_variables import list_steps, read_variables
from clip_jax.weights import position_embeddings
from clip_jax.weights.load import WEIGHTS, Loaded, load_released, preprocess_of
from clip_jax.weights.remote import local_copy

Step = int | Literal["best"] | None
log = logging.getLogger(__name__)


def load(
    path: str | os.PathLike, model: str | ModelConfig | None = None, *, step: Step = None
) -> Loaded:
    """Load a trained model.

    Args:
      path: a run directory of `clip-jax train`, also in a bucket (gs://); a directory of Hugging
        Face (config.json), open_clip (open_clip_config.json) or sentence-transformers; or one file:
        OpenAI's or open_clip's .pt, .safetensors, or big_vision's .npz for SigLIP, known by its
        content (docs/weights.md). Both may be URLs (gs://,
        s3://, hf://; a file also at https://), of which a copy is kept in the user's cache.
      model: the architecture, where the files do not tell it or another image size, context
        length or activation is wanted. Position embeddings are resized to it.
      step: which checkpoint of a run; None: the newest intact one; "best": the one with the best
        value of its `checkpoint.keep_best_by`.

    Returns:
      `Loaded(model, variables, tokenizer, preprocess)`. The variables are float32, and averaged
      where a run kept an average. The tokenizer is None where its file does not lie with released
      weights.

    Raises:
      FileNotFoundError: there is nothing at `path`, or a run has no checkpoint yet.
      ValueError: the files are damaged or do not fit the architecture; the message names the
        tensor, both shapes and the closest architecture.
    """
    loaded = load_to_host(path, model, step=step)
    return loaded._replace(variables=jax.device_put(loaded.variables))


def load_to_host(
    path: str | os.PathLike, model: str | ModelConfig | None = None, *, step: Step = None
) -> Loaded:
    """The same with NumPy's arrays, for who places them over several devices; see `load`."""
    path = os.fspath(path)
    if can_hold_runs(path):
        run = RunDirectory(path, main=False)
        if run.holds_run:
            return load_run(run, model, step=step)
    check_there(path)
    remote, local = storage.is_url(path), Path(path).expanduser()
    if step is not None:
        raise ValueError(f"step={step} is of runs, and {path} is none: it has no model.json")
    return load_released(local_copy(path, WEIGHTS) if remote else local, model)


def check_there(path: str):
    """Raise FileNotFoundError where a path names nothing; a URL is not asked."""
    if not storage.is_url(path) and not Path(path).expanduser().exists():
        raise FileNotFoundError(f"there is no file or directory {path}")


def load_run(
    run: RunDirectory, model: str | ModelConfig | None = None, *, step: Step = None
) -> Loaded:
    """Load a checkpoint of a run directory; see `load`."""
    stored = run.load_model_config()
    assert stored is not None
    # The form of attention that it trained with was the choice of another machine perhaps.
    config = dataclasses.replace(stored, attention="auto")
    chosen = best_of(run) if step == "best" else step
    ours = [name for name, tower in config.towers.items() if name_of(tower) in TOWERS]
    variables, found = read_variables(run.checkpoints, step=chosen, flat=ours)
    log.info("%s: read step %d", run.path, found)
    # What terms of the loss needed beside the towers is of use to training alone.
    own = {*config.towers, "logit_scale", "logit_bias"}
    variables = {
        kind: {name: part for name, part in parts.items() if name in own}
        for kind, parts in variables.items()
    }
    if model is not None:
        config = model_config(model)
        variables = position_embeddings.resize(variables, stored, config)
    tokenizer = load_tokenizer(run.tokenizer, context_length=config.text.context_length)
    tokenizer.rows = config.text.vocab_size
    return Loaded(CLIP(config), variables, tokenizer, preprocess_of(config))


def best_of(run: RunDirectory) -> int:
    """The checkpoint with the best value of the metric that the run keeps the best by."""
    from clip_jax.evaluation.suite import (
        best_direction,
    )  # a third of what `import clip_jax` would take

    config = run.load_config()
    name = config and config.checkpoint.keep_best_by
    if name is None:
        raise ValueError(f"{run.path} has no best step: it ran without checkpoint.keep_best_by")
    steps, better = list_steps(run.checkpoints), best_direction(config)
    step = retention.best_step(run.checkpoints, steps, name, better=better)
    if step is None:
        raise ValueError(f"no checkpoint in {run.path} was saved with an evaluation's {name}")
    return step
