"""What a run is made of, and the settings that are refused before anything is compiled."""

import dataclasses
import io
import logging
import math
import types

import jax
import jax.numpy as jnp
import pytest
from PIL import Image

from clip_jax.config import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    MeshConfig,
    ModelSettings,
    OptimizerConfig,
    PreprocessConfig,
    TokenizerConfig,
    TrainConfig,
)
from clip_jax.data.samples import BadSample, Sample
from clip_jax.models.architectures import model_config
from clip_jax.models.clip import CLIP, create_model, init_variables
from clip_jax.runs.directory import RunDirectory
from clip_jax.training import setup
from clip_jax.training.setup import (
    captions,
    check,
    check_devices,
    make_run_optimizer,
    named_model,
    prepare,
    resolve_model,
)
from clip_jax.weights.load import Loaded

SMALL = TrainConfig(
    steps=4,
    model=ModelSettings(name="ViT-test", dtype="float32"),
    data=DataConfig(batch_size=16),
    evaluation=EvaluationConfig(batch_size=16),
    optimizer=OptimizerConfig(warmup_steps=1),
)


def changed(**changes) -> TrainConfig:
    return dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer": OptimizerConfig(warmup_steps=9)}, "optimizer.warmup_steps=9"),
        ({"optimizer": OptimizerConfig(cooldown_steps=1)}, "optimizer.cooldown_steps=1"),
        ({"model": ModelSettings(freeze="text")}, r"model.freeze=text .* model.init_from"),
        ({"evaluation": EvaluationConfig(metrics=("los",))}, "evaluation.metrics='los'"),
        ({"checkpoint": CheckpointConfig(keep_best_by="eval/los")}, "keep_best_by=eval/los"),
        *(
            ({"optimizer": OptimizerConfig(name=name, warmup_steps=1, **option)}, f"has.*{name}")
            for name in ("adafactor", "lion")
            for option in ({"eps": 1e-8}, {"b2": 0.9})
            if (name, *option) != ("lion", "b2")
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused_before_a_device_is_touched(
    changes, named, monkeypatch
):
    def devices(*args):
        raise AssertionError("a device was touched")

    monkeypatch.setattr(jax, "devices", devices)
    check(SMALL)
    with pytest.raises(ValueError, match=named):
        check(changed(**changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": DataConfig(batch_size=12)}, r"data.batch_size=12 .* 8 devices"),
        ({"data": DataConfig(batch_size=8, accumulation=2)}, r"batch_size=8 .* 2 micro-batches"),
        ({"evaluation": EvaluationConfig(batch_size=4)}, "evaluation.batch_size=4"),
        ({"model": ModelSettings(attention="cudnn")}, "model.attention=cudnn needs an NVIDIA GPU"),
    ],
)
def test_settings_that_the_devices_do_not_allow_are_refused(mesh, changes, named):
    check_devices(SMALL, mesh(8))
    with pytest.raises(ValueError, match=named):
        check_devices(changed(**changes), mesh(8))


def test_an_unknown_model_is_refused_before_the_data_are_opened(tmp_path, monkeypatch):
    def opened(*args):
        raise AssertionError("the data were opened")

    monkeypatch.setattr(setup.registry, "open_sources", opened)
    cfg = changed(model=ModelSettings(name="ViT-tset"))
    with pytest.raises(ValueError, match=r"ViT-tset.*ViT-test"):
        prepare(cfg, RunDirectory(tmp_path))


def test_decoding_on_gpus_that_are_not_there_is_refused_before_the_data_are_opened(
    tmp_path, monkeypatch
):
    def opened(*args):
        raise AssertionError("the data were opened")

    monkeypatch.setattr(setup.registry, "open_sources", opened)
    cfg = changed(data=DataConfig(batch_size=16, decode="gpu"))
    with pytest.raises(ValueError, match=r"data.decode=gpu needs .* leave it at cpu"):
        prepare(cfg, RunDirectory(tmp_path))


def test_the_defaults_make_a_run(mesh):
    check(TrainConfig())
    check_devices(TrainConfig(), mesh(8))
    assert make_run_optimizer(TrainConfig(), named_model(TrainConfig()))


def test_a_tower_that_is_not_loaded_is_not_frozen():
    settings = ModelSettings(freeze="text", init_from="x", init_towers="image")
    with pytest.raises(ValueError, match=r"model.freeze=text .* model.init_towers=image"):
        check(changed(model=settings))


@pytest.mark.parametrize(
    ("name", "tower", "has"),
    [("ViT-test", "image", 2), ("ViT-test", "text", 2), ("RN-test", "image", 0)],
)
def test_no_more_blocks_are_unlocked_than_the_frozen_tower_has(name, tower, has):
    frozen = {"name": name, "freeze": tower, "init_from": "x"}
    check(changed(model=ModelSettings(**frozen, unlocked_blocks=has)))
    with pytest.raises(
        ValueError, match=f"unlocked_blocks={has + 1} must be at most {has}, .*{tower}"
    ):
        check(changed(model=ModelSettings(**frozen, unlocked_blocks=has + 1)))


def test_layer_decay_needs_layers():
    cfg = changed(optimizer=OptimizerConfig(layer_decay=0.7, warmup_steps=0))
    model = create_model("ViT-test")
    optimizer = make_run_optimizer(cfg, model.config)
    shapes = jax.eval_shape(lambda key: init_variables(model, key), jax.random.key(0))["params"]
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    updates, _ = optimizer.update(ones, optimizer.init(ones), ones)
    below, above = (updates["text"][name] for name in ("token_embedding", "projection"))
    ratio = below.mean() / above["kernel"].mean()
    assert float(ratio) == pytest.approx(0.7 ** (model.config.text.depth + 1), rel=1e-3)
    with pytest.raises(
        ValueError, match=r"optimizer.layer_decay=0.7 .* resnet, a tower of RN-test"
    ):
        make_run_optimizer(cfg, create_model("RN-test").config)


# ------------------------------------------------------------------------------- the model


def test_the_run_changes_what_it_says_and_nothing_else():
    settings = ModelSettings(name="ViT-B-32", image_size=256, patch_dropout=0.5, remat="dots")
    config = named_model(changed(model=settings))
    plain = create_model("ViT-B-32").config
    assert (config.vision.image_size, config.vision.patch_dropout) == (256, 0.5)
    assert (config.remat, config.dtype) == ("dots", "bfloat16")
    assert config.text == plain.text and config.embed_dim == plain.embed_dim


def test_the_loss_decides_whether_there_is_a_bias(caplog):
    config = named_model(changed(loss=LossConfig(kind="sigmoid")))
    assert (config.init_logit_scale, config.init_logit_bias) == (math.log(10), -10)
    with caplog.at_level(logging.WARNING):
        config = named_model(changed(model=ModelSettings(name="ViT-B-16-SigLIP")))
    assert config.init_logit_bias is None
    assert config.init_logit_scale == pytest.approx(math.log(1 / 0.07))
    assert "it has none here" in caplog.text


@pytest.mark.parametrize(
    ("kind", "size", "wanted", "found"),
    [
        ("sentencepiece", 300, None, 300),  # one of the run's own
        ("clip", 49_408, None, 49_408),
        ("sentencepiece", 300, 512, 512),
    ],
)
def test_the_vocabulary_is_the_tokenizers_unless_it_is_told(kind, size, wanted, found):
    tokenizer = tokenizer_of(kind, size)
    cfg = changed(model=ModelSettings(name="ViT-test", vocab_size=wanted))
    assert resolve_model(cfg, named_model(cfg), tokenizer).text.vocab_size == found


def test_a_vocabulary_too_small_for_its_tokenizer_is_refused():
    cfg = changed(model=ModelSettings(name="ViT-test", vocab_size=100))
    tokenizer = tokenizer_of("sentencepiece", 300)
    with pytest.raises(ValueError, match=r"model.vocab_size=100 is below the 300 ids"):
        resolve_model(cfg, named_model(cfg), tokenizer)


# -------------------------------------------------------------------------------- the data


PIXEL = io.BytesIO()
Image.new("RGB", (1, 1)).save(PIXEL, "PNG")


def tokenizer_of(kind: str, vocab_size: int):
    ends_at_largest_id = kind not in ("siglip", "siglip-transformers", "clipa")
    return types.SimpleNamespace(
        kind=kind,
        vocab_size=vocab_size,
        embedded=vocab_size,
        end_id=vocab_size - 1 if ends_at_largest_id else 1,
        ends_at_largest_id=ends_at_largest_id,
    )


def source(*texts: tuple[str, ...] | None):
    def get(index: int) -> Sample:
        if texts[index] is None:
            raise BadSample("torn", key=str(index), shard="s")
        return Sample(image=PIXEL.getvalue(), captions=texts[index], key=str(index), shard="s")

    class Captions:
        name, classes, templates = "captions", None, None
        __len__ = lambda self: len(texts)  # noqa: E731
        __getitem__ = lambda self, index: get(index)  # noqa: E731

    return Captions()


def test_captions_of_all_sources_take_turns_and_bad_ones_are_passed_over():
    one, other = source(("a", "b"), None, ("c",)), source(("x",))
    assert list(captions([one, other])) == ["a", "b", "x", "c"]


def test_a_run_is_prepared_whole_and_without_an_array(tmp_path, monkeypatch):
    tiny = source(*[(f"picture {index}",) for index in range(20)])
    monkeypatch.setattr(setup.registry, "open_sources", lambda cfg, split: [tiny])
    monkeypatch.setattr(setup.registry, "open_eval_source", lambda cfg: None)
    looked_at = []
    monkeypatch.setattr(setup, "warn_of_sorted_data", lambda *args: looked_at.append(args))
    cfg = changed(mesh=MeshConfig(fsdp=2), tokenizer=TokenizerConfig(vocab_size=290))
    with RunDirectory(tmp_path / "run") as run:
        made = prepare(cfg, run)
        assert looked_at == [([tiny], cfg.data)]
        assert made.mesh.devices.shape == (4, 2)
        assert made.model.config.text.vocab_size == made.tokenizer.vocab_size
        assert isinstance(made.model, CLIP) and not made.model.checked and made.initial is None
        state = made.abstract_state
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state))
        made.tokenizer.save(str(run.tokenizer))
        again = prepare(cfg, run)  # the run has its tokenizer now, whatever the data say
        assert again.tokenizer.vocab_size == made.tokenizer.vocab_size


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """`prepared(**changes)`: the parts of a small run whose data are lists of captions."""
    tiny = source(*[(f"picture {index}",) for index in range(20)])
    monkeypatch.setattr(setup.registry, "open_sources", lambda cfg, split: [tiny])
    monkeypatch.setattr(setup.registry, "open_eval_source", lambda cfg: tiny)

    def make(**changes):
        with RunDirectory(tmp_path / "run") as run:
            return prepare(changed(tokenizer=TokenizerConfig(vocab_size=290), **changes), run)

    return make


def test_a_run_that_never_evaluates_opens_nothing_to_evaluate_on(prepared):
    assert prepared().eval_source is not None
    assert prepared(evaluation=EvaluationConfig(batch_size=16, every_steps=0)).eval_source is None


def test_the_best_by_a_metric_needs_an_evaluation(prepared):
    with pytest.raises(ValueError, match=r"keep_best_by=eval/loss .* evaluation.every_steps=0"):
        prepared(
            evaluation=EvaluationConfig(batch_size=16, every_steps=0),
            checkpoint=CheckpointConfig(keep_best_by="eval/loss"),
        )


@pytest.mark.parametrize("towers", ["both", "text"])
def test_the_preprocessing_comes_with_the_image_tower_and_stays(
    towers, tmp_path, monkeypatch, draw
):
    tiny = source(*[(f"picture {index}",) for index in range(20)])
    monkeypatch.setattr(setup.registry, "open_sources", lambda cfg, split: [tiny])
    monkeypatch.setattr(setup, "_open_eval_source", lambda cfg: None)
    grey = PreprocessConfig(mean=(0.5,) * 3, std=(0.5,) * 3)
    stored = create_model(model_config("ViT-test", preprocess=grey))
    weights = Loaded(model=stored, variables=draw(stored), tokenizer=None, preprocess=None)
    monkeypatch.setattr(setup, "load_to_host", lambda path: weights)
    model = ModelSettings(name="ViT-test", init_from="weights", init_towers=towers)
    cfg = changed(model=model, tokenizer=TokenizerConfig(vocab_size=290))
    with RunDirectory(tmp_path / "run") as run:
        made = prepare(cfg, run)
        assert (made.model.config.preprocess == grey) == (towers == "both")
        run.save_config(cfg, made.model.config)
        made.tokenizer.save(str(run.tokenizer))
        (run.checkpoints / "1").mkdir(parents=True)
        again = prepare(cfg, run)  # without the weights
        assert again.model.config == made.model.config
        assert again.tokenizer.rows == made.model.config.text.vocab_size


@pytest.mark.parametrize("kind", ["siglip", "clipa"])
def test_a_tokenizer_whose_end_a_model_would_not_find_is_refused(kind):
    tokenizer = tokenizer_of(kind, 32)
    with pytest.raises(ValueError, match=f"ViT-test reads .* kind {kind} .*tokenizer.kind"):
        resolve_model(SMALL, named_model(SMALL), tokenizer)


def test_released_clipa_keeps_its_vocabulary_which_is_larger_than_its_tokenizers():
    cfg = changed(model=ModelSettings(name="ViT-L-14-CLIPA"))
    tokenizer = tokenizer_of("clipa", 30_522)
    config = resolve_model(cfg, named_model(cfg), tokenizer)
    assert (config.text.vocab_size, config.tokenizer) == (32_000, "huggingface")


@pytest.mark.parametrize(
    ("name", "kind", "rows"),
    [("ViT-B-32", "transformers", 49_408), ("ViT-B-16-SigLIP", "siglip-transformers", 32_000)],
)
@pytest.mark.parametrize("reserved", [0, 100])
def test_a_released_models_own_tokenizer_leaves_its_architecture_as_it_is(
    name, kind, rows, reserved
):
    """Also where it has tokens beside those that the weights have rows for."""
    cfg = changed(model=ModelSettings(name=name))
    tokenizer = tokenizer_of(kind, rows + reserved)
    tokenizer.embedded, tokenizer.ends_at_largest_id = rows, True
    config = resolve_model(cfg, named_model(cfg), tokenizer)
    assert (config.text, config.tokenizer) == (named_model(cfg).text, named_model(cfg).tokenizer)


@pytest.mark.parametrize("rows", [None, 901_630])
def test_a_text_tower_that_reads_at_an_end_token_reads_at_the_runs_own(rows):
    cfg = changed(model=ModelSettings(name="ViT-H-14-worldwide", vocab_size=rows))
    tokenizer = tokenizer_of("huggingface", 300)
    text = resolve_model(cfg, named_model(cfg), tokenizer).text
    assert (text.pool, text.end_id, text.vocab_size) == ("eos", 299, rows or 901_629)
