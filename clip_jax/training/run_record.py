"""What a run is made of, as its directory tells it: written once, compared at every later start."""

import logging

import jax

from clip_jax.data.sources import registry
from clip_jax.data.tokenizers.base import DESCRIPTION
from clip_jax.runs import provenance
from clip_jax.runs.directory import RunDirectory
from clip_jax.training.setup import Setup

log = logging.getLogger(__name__)


def check_resume(setup: Setup, run: RunDirectory):
    """Compare the settings with those of the run that is there, and name what changed."""
    old = run.load_config()
    if old is None:
        return
    was = (run.read_json("data.json") or {}).get("fingerprint")
    changes = provenance.check_resume(
        provenance.to_json(old) | {"fingerprint": was},
        provenance.to_json(setup.cfg) | {"fingerprint": fingerprint(setup)},
        setup.cfg.checkpoint.allow_change,
    )
    for change in changes:
        log.warning("Resuming with a changed setting: %s", change)


def write(setup: Setup, run: RunDirectory):
    """Write what the run is made of, once it is known to go on."""
    run.save_config(setup.cfg, setup.model.config)
    run.write_json("data.json", {"fingerprint": fingerprint(setup)})
    run.write_json("environment.json", provenance.environment())
    if jax.process_index() == 0 and not (run.tokenizer / DESCRIPTION).exists():
        setup.tokenizer.save(run.tokenizer)


def fingerprint(setup: Setup) -> str:
    return registry.fingerprint(setup.sources, setup.cfg.data.weights)
