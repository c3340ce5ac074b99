"""Prompts to class vectors, class vectors to accuracies, files to names."""

import numpy as np
import pytest

from clip_jax.evaluation import prompts as prompts_module
from clip_jax.evaluation.encode import Encoder
from clip_jax.evaluation.evaluators.zero_shot import class_accuracy, zero_shot
from clip_jax.evaluation.prompts import (
    SIMPLE_TEMPLATES,
    check_prompts,
    class_embeddings,
    read_classes,
    read_templates,
)
from clip_jax.evaluation.ranking import rank

CLASSES = ("red", "green", "blue", "pale yellow", "dark")


@pytest.fixture
def encoder(model, variables, mesh):
    return Encoder(model, variables, mesh, batch_size=8)


@pytest.mark.parametrize("at_once", [1, 9, 8192])
def test_a_class_is_the_normalised_mean_of_its_prompts(
    monkeypatch, encoder, apply, model, variables, tokenizer, at_once
):
    monkeypatch.setattr(prompts_module, "TEXTS_AT_ONCE", at_once)
    z_class_SE = class_embeddings(encoder, tokenizer, CLASSES)
    assert len(z_class_SE) == len(CLASSES)
    for z_class_E, name in zip(z_class_SE, CLASSES):
        prompts = [template.replace("{}", name) for template in SIMPLE_TEMPLATES]
        z_E = apply(model, "encode_text", variables, tokenizer(prompts)).mean(axis=0)
        np.testing.assert_allclose(z_class_E, z_E / np.linalg.norm(z_E), atol=2e-6)


def test_a_class_may_have_prompts_of_its_own(encoder, tokenizer, tmp_path):
    (tmp_path / "cupl.json").write_text(
        '{"red": ["a red thing", "something red"], "dark": ["dim"]}'
    )
    prompts = read_templates(str(tmp_path / "cupl.json"))
    z_class_SE = class_embeddings(encoder, tokenizer, ["dark", "red"], prompts)
    z_ME = encoder.encode_texts(tokenizer(["dim", "a red thing", "something red"]))
    z_red_E = z_ME[1:].mean(axis=0)
    np.testing.assert_allclose(z_class_SE[0], z_ME[0], atol=1e-6)
    np.testing.assert_allclose(z_class_SE[1], z_red_E / np.linalg.norm(z_red_E), atol=1e-6)
    check_prompts(["dark", "red"], prompts, "cupl.json")
    with pytest.raises(
        ValueError, match=r"cupl\.json has no prompts for 1 of 2 classes \('blue'\)"
    ):
        check_prompts(["blue", "red"], prompts, "cupl.json")


def test_both_ways_to_write_a_template_give_the_same_prompts(encoder, tokenizer):
    ours, open_clip = ["a {} dot.", "{}"], ["a {c} dot.", "{c}"]
    np.testing.assert_array_equal(
        class_embeddings(encoder, tokenizer, CLASSES, ours),
        class_embeddings(encoder, tokenizer, CLASSES, open_clip),
    )


def test_accuracies_equal_those_counted_by_hand(mesh):
    z_class_SE = np.eye(6, dtype=np.float32)
    # Each image likes the classes in this order; the right ones are at places 1, 2, 1 and 6.
    likes = [(0, 1, 2, 3, 4, 5), (1, 0, 2, 3, 4, 5), (1, 0, 2, 3, 4, 5), (2, 1, 3, 4, 5, 0)]
    z_image_NE = np.zeros((4, 6), np.float32)
    for row, order in zip(z_image_NE, likes):
        row[list(order)] = [0.9, 0.7, 0.5, 0.3, 0.2, 0.1]
    label_N = np.array([0, 0, 1, 0])
    ranks = rank(z_image_NE, label_N, z_class_SE, np.arange(len(z_class_SE)), mesh=mesh)
    assert zero_shot(ranks, label_N, ["seen", "held_out", "seen", None]) == pytest.approx(
        {
            "top1": 2 / 4,
            "top5": 3 / 4,
            "mean_per_class": (1 / 3 + 1) / 2,
            "seen/top1": 1.0,
            "seen/top5": 1.0,
            "seen/mean_per_class": 1.0,
            "held_out/top1": 0.0,
            "held_out/top5": 1.0,
            "held_out/mean_per_class": 0.0,
        }
    )
    assert class_accuracy(ranks.found(1), label_N) == pytest.approx({0: 1 / 3, 1: 1.0})


def test_two_classes_of_one_name_share_their_images(mesh):
    z_class_SE = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    z_image_NE, label_N = np.array([[1, 0]], np.float32), np.array([1])
    ranks = rank(z_image_NE, label_N, z_class_SE, np.arange(len(z_class_SE)), mesh=mesh)
    assert zero_shot(ranks, label_N)["top1"] == pytest.approx(0.5)


def test_files_are_read_a_line_each_without_blank_ones(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("\ufefftench\r\n\r\n great white shark \nna\u2028me\n".encode())
    assert read_classes(str(file)) == ("tench", "great white shark", "na\u2028me")
    file.write_text("a photo of a {}.\n{}\n")
    assert read_templates(str(file)) == ("a photo of a {}.", "{}")


def test_a_template_without_a_place_for_the_name_is_refused(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a photo of a {}.\na photo of a dog.\n")
    with pytest.raises(
        ValueError, match=r"prompts\.txt: the prompt 'a photo of a dog\.' has no \{\}"
    ):
        read_templates(str(file))


@pytest.mark.parametrize("read", [read_classes, read_templates])
def test_files_that_cannot_be_used_are_named(tmp_path, read):
    file = tmp_path / "list.txt"
    with pytest.raises(
        FileNotFoundError, match=r"evaluation\.\w+=.*list\.txt: there is no such file"
    ):
        read(str(file))
    file.write_text("\n \n")
    with pytest.raises(ValueError, match=r"evaluation\.\w+=.*list\.txt is empty"):
        read(str(file))
    file.write_bytes(b"\xff\xfe\x00r")
    with pytest.raises(ValueError, match=r"list\.txt is not a text file in UTF-8"):
        read(str(file))


def test_imagenets_names_and_prompts_are_shipped():
    names, templates = read_classes("imagenet"), read_templates("imagenet")
    assert (len(names), names[0], len(templates)) == (1000, "tench", 80)
