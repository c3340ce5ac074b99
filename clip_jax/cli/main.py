"""`clip-jax`: one function for each command, no logic of its own."""

import difflib
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from clip_jax.cli import environment
from clip_jax.cli.arguments import parse, run_config, take_config
from clip_jax.cli.average import average_command
from clip_jax.cli.bench import bench
from clip_jax.cli.collection import classify, embed
from clip_jax.cli.evaluate import evaluate
from clip_jax.cli.plan import plan
from clip_jax.cli.search import index, search, serve
from clip_jax.cli.settings import settings
from clip_jax.config import TrainConfig
from clip_jax.hardware import let_cpu_devices_wait, silence_absent_tpus
from clip_jax.load import Step, load_to_host
from clip_jax.models.architectures import ARCHITECTURES, model_config
from clip_jax.models.flops import forward_flops, parameter_count
from clip_jax.planning.out_of_memory import memory_advice
from clip_jax.redaction import redact, redact_logs
from clip_jax.registry import is_import_path
from clip_jax.runs.console import tolerant_streams
from clip_jax.runs.directory import RunDirectory
from clip_jax.runs.goodput import start_of_process
from clip_jax.runs.report.page import write_report
from clip_jax.runs.save_retries import SaveFailed
from clip_jax.storage import user_cache
from clip_jax.training.loop import train
from clip_jax.training.setup import check
from clip_jax.training.step_log import RunFailed
from clip_jax.weights.export import export as export_weights
from clip_jax.weights.stablehlo import export_portable

CONFIG_HELP = """
--config FILE starts from FILE's get_config(); --config RUN from the settings of an earlier run.
Every setting below overrides it, such as: clip-jax train --config configs/shapes_tiny.py --steps 500
"""


def train_command(args: list[str]) -> int:
    """Train a model, or resume the run that is in --workdir."""
    cfg, others = take_config(args)
    prog = "clip-jax train"
    cfg = parse(TrainConfig, others, default=cfg, prog=prog, description=CONFIG_HELP)
    environment.check_switches()
    check(cfg)
    try:
        return train(cfg, began=start_of_process())
    except jax.errors.JaxRuntimeError as error:
        if not environment.is_out_of_memory(error):
            raise
        raise ValueError(f"{environment.out_of_memory(error)}. {memory_advice(cfg)}") from error


def report_command(args: list[str]) -> int:
    """Write report.html of a run again."""

    def report(run: Annotated[str, tyro.conf.Positional]) -> int:
        """Write report.html of a run again.

        Args:
            run: the run directory.
        """
        run_config(run)
        goodput = RunDirectory(run, main=False).read_json("goodput.json") or {}
        print(write_report(run, goodput=goodput.get("seconds")))
        return 0

    return tyro.cli(report, args=args, prog="clip-jax report")


def models_command(args: list[str]) -> int:
    """List the architectures, with parameters, embedding size and forward FLOPs."""

    def models(match: Annotated[str, tyro.conf.Positional] = "") -> int:
        """List the architectures.

        Args:
            match: only names with this in them; or package.module:NAME of a ModelConfig.
        """
        known = ARCHITECTURES
        if is_import_path(match):
            known = {match: model_config(match)}
        print(f"{'name':34} {'image':>5} {'embedding':>9} {'parameters':>12} {'GFLOP a pair':>13}")
        for name, config in known.items():
            if match.lower() in name.lower():
                print(
                    f"{name:34} {config.vision.image_size:5} {config.embed_dim:9} "
                    f"{parameter_count(config) / 1e6:10.1f} M {forward_flops(config) / 1e9:13.2f}"
                )
        return 0

    return tyro.cli(models, args=args, prog="clip-jax models")


def convert_command(args: list[str]) -> int:
    """Write a run or released weights for Hugging Face or open_clip."""

    def convert(
        model: Annotated[str, tyro.conf.Positional],
        out: Annotated[Path, tyro.conf.Positional],
        to: Literal["huggingface", "open_clip"] = "huggingface",
        architecture: str | None = None,
        step: Step = None,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    ) -> int:
        """Write a run or released weights for Hugging Face or open_clip.

        Args:
            model: a run directory, or released weights (a file or a directory).
            out: a new directory.
            to: the library that is to read it.
            architecture: where the weights do not tell it.
            step: which checkpoint of a run, its number or "best"; default: the newest.
            dtype: of the weights that are written.
        """
        loaded = load_to_host(model, architecture, step=step)
        config, variables = loaded.model.config, loaded.variables
        export_weights(out, config, variables, to=to, tokenizer=loaded.tokenizer, dtype=dtype)
        print(out)
        return 0

    return tyro.cli(convert, args=args, prog="clip-jax convert")


def export_command(args: list[str]) -> int:
    """Write a model as StableHLO, which runs without clip_jax."""

    def export(
        model: Annotated[str, tyro.conf.Positional],
        out: Annotated[Path, tyro.conf.Positional],
        platforms: tuple[Literal["cpu", "cuda", "tpu"], ...] = ("cpu", "cuda", "tpu"),
        step: Step = None,
    ) -> int:
        """Write a model as StableHLO, which runs without clip_jax.

        Args:
            model: a run directory, or released weights (a file or a directory).
            out: a new directory.
            platforms: where it is to run.
            step: which checkpoint of a run, its number or "best"; default: the newest.
        """
        loaded = load_to_host(model, step=step)
        export_portable(loaded.model, loaded.variables, out, platforms=platforms)
        print(out)
        return 0

    return tyro.cli(export, args=args, prog="clip-jax export")


def data_command(args: list[str]) -> int:
    """Look at data, filter and convert it: clip-jax data --help lists the commands."""
    from clip_jax.cli.data import data  # it imports TensorFlow Datasets, which takes half a second

    return data(args)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train_command,
    "eval": evaluate,
    "bench": bench,
    "average": average_command,
    "report": report_command,
    "models": models_command,
    "settings": settings,
    "convert": convert_command,
    "export": export_command,
    "data": data_command,
    "plan": plan,
    "embed": embed,
    "classify": classify,
    "index": index,
    "search": search,
    "serve": serve,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. A mistake of the user's is one line on standard error and exit code 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in args
    args = [arg for arg in args if arg != "--traceback"]
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return 0 if args else 2
    if args[0] not in COMMANDS:
        near = difflib.get_close_matches(args[0], COMMANDS, n=1)
        hint = f"; the nearest is {near[0]}" if near else ""
        print(f'clip-jax: there is no command "{args[0]}"{hint}\n\n{_usage()}', file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:  # a library may have put its own there before
        handler.setFormatter(logging.Formatter("%(message)s"))
    redact_logs()
    _cache_compiled_programs()
    silence_absent_tpus()
    let_cpu_devices_wait()
    try:
        return COMMANDS[args[0]](args[1:])
    except Exception as error:
        known = isinstance(error, ValueError | OSError | RunFailed | SaveFailed)
        if (text := str(error) if known else environment.explain(error)) is None:
            raise
        with tolerant_streams():  # a full log disk must not change the exit code
            if show_traceback:
                traceback.print_exc()
            else:
                text = " ".join(redact(text).split())
                print(f"clip-jax: {text} (--traceback shows where)", file=sys.stderr)
        return 1 if isinstance(error, RunFailed | SaveFailed) else 2


def _usage() -> str:
    rows = [f"  {name:8} {command.__doc__.splitlines()[0]}" for name, command in COMMANDS.items()]
    return "usage: clip-jax COMMAND ... (clip-jax COMMAND --help says more)\n\n" + "\n".join(rows)


def _cache_compiled_programs():
    """A second start of the same run takes its programs from disk."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(user_cache() / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    environment.replace_damaged_programs()


if __name__ == "__main__":
    sys.exit(main())
