"""Data of tasks in their real layouts: what is read, and what is refused by the name of a file."""

import io
import json

import numpy as np
import pytest
import stand_ins
from PIL import Image

from clip_jax.config import DataConfig
from clip_jax.data.samples import BadSample
from clip_jax.evaluation.bench.layouts import Missing, open_task, where_from
from clip_jax.evaluation.bench.tasks import read_suite

TASKS = {task.name: task for name in ("datacomp38", "clip_benchmark", "choice")
         for task in read_suite(name).tasks}  # fmt: skip


@pytest.fixture
def opened(tmp_path):
    """Opens a task under a root."""

    def open_(name, root, **options):
        return open_task(
            TASKS[name], [root], DataConfig(data_dir=str(tmp_path / "data")), **options
        )

    return open_


def labels(source):
    return [source[index].label for index in range(len(source))]


def test_every_task_of_datacomp_opens_in_its_layout(datacomp_root, opened):
    for task in read_suite("datacomp38").tasks:
        source = opened(task.name, datacomp_root)
        Image.open(io.BytesIO(source[0].image)).verify()
        if task.kind == "classification":
            assert len(source.classes) == task.classes, task.name
            assert len(set(labels(source))) > 1, task.name
            assert source.templates
        elif task.kind == "retrieval":
            assert len(source[0].captions) == 5 and source.classes is None


def test_labels_are_derived_from_objects_as_vtab_does(datacomp_root, opened):
    kitti = opened("vtab/kitti_closest_vehicle_distance", datacomp_root)
    assert sorted(labels(kitti)) == [0, 1, 2, 3]
    counts = labels(opened("vtab/clevr_count_all", datacomp_root))
    assert sorted(counts) == [0, 0, 1, 1, 2, 2]
    # 7, 8, 9 and 10 away: the bounds are 8, 8.5, 9, 9.5 and 10, which belong to the nearer class.
    assert set(labels(opened("vtab/clevr_closest_object_distance", datacomp_root))) == {0, 2, 4}
    voc = opened("voc2007", datacomp_root)
    assert len(voc) == 8  # two objects an image, each its box
    assert Image.open(io.BytesIO(voc[0].image)).size == (12, 8)


def test_groups_and_several_labels_come_from_the_npy(datacomp_root, tmp_path, opened):
    fmow = opened("wilds/fmow", datacomp_root)
    assert {fmow[index].group for index in range(len(fmow))} == {"group_0", "group_1"}
    shown = [np.eye(20)[0] + np.eye(20)[3], np.zeros(20)]
    samples = [{"png": stand_ins.picture(n), "npy": stand_ins.npy(s)} for n, s in enumerate(shown)]
    names = [f"thing {number}" for number in range(20)]
    stand_ins.write_set(
        tmp_path / "wds_voc2007_multilabel", samples, classes=names, kind="multilabel"
    )
    source = opened("voc2007_multilabel", tmp_path)
    assert [source[0].labels, source[1].labels] == [(0, 3), ()]
    assert source.templates == ("a photo of a {c}.",)  # the set has none: the shipped ones


def test_prompts_of_imagenet_are_those_that_are_shipped(tmp_path, opened):
    stand_ins.tfds_imagenet(tmp_path, 0)
    source = opened("imagenetv2", tmp_path)
    assert source.classes[1] == "goldfish" and len(source.templates) == 80
    assert len(opened("imagenet-a", tmp_path).classes) == 1000  # those that occur are taken later


@pytest.mark.parametrize("write, names, count", [
    (stand_ins.winoground, ["winoground"], 3),
    (stand_ins.mmvp_vlm, ["mmvp_vlm"], 2),
    (stand_ins.sugar_crepe, ["sugar_crepe/add_att", "sugar_crepe/swap_obj"], 3),
    (stand_ins.aro, ["aro/visual_genome_relation", "aro/visual_genome_attribution"], 3),
])  # fmt: skip
def test_questions_are_read_as_their_authors_publish_them(tmp_path, opened, write, names, count):
    write(tmp_path, 5)
    for name in names:
        source = opened(name, tmp_path)
        assert len(source.questions) == count
        for question in source.questions:
            assert len(question.texts) == 2 and len(question.right) == len(question.images)
            for image in question.images:
                Image.open(io.BytesIO(source[image].image)).verify()
    if names == ["winoground"]:
        assert source.questions[1].images == (2, 3)
    if write is stand_ins.aro:
        assert Image.open(io.BytesIO(source[0].image)).size == (9, 8)
        assert source.questions[0].group == "red_white"
        assert source.questions[0].texts[0] == "the horse eats the grass 0"  # the true one first


def test_an_image_of_several_associations_is_embedded_once(datacomp_root, opened):
    source = opened("misc/winogavil", datacomp_root)
    assert (len(source), len(source.questions)) == (12, 4)
    egg = source.questions[0]
    assert (egg.texts, egg.right) == (("An egg",), ((1, 0), (3, 0)))


def good_set(root, *, count=2):
    """MNIST's tars, which tests damage."""
    folder = root / "wds_mnist"
    names = [str(number) for number in range(10)]
    samples = stand_ins.labelled(TASKS["mnist"], 0)
    stand_ins.write_set(folder, samples, classes=names, templates=["{c}"], tars=count)
    return folder


def test_samples_follow_the_numbers_of_the_tars(tmp_path, opened):
    folder = tmp_path / "wds_mnist"
    names = [str(number) for number in range(10)]
    samples = stand_ins.labelled(TASKS["mnist"], 0, labels=range(10), each=2)
    stand_ins.write_set(folder, samples, classes=names, templates=["{c}"], tars=11)
    assert labels(opened("mnist", tmp_path)) == list(range(10)) * 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "test/nshards.txt").write_text("3"), r"nshards\.txt counts 3 tars, and 2\.tar is"),
        (lambda f: (f / "test/sizes.json").write_text('{"0.tar": 2, "1.tar": 3}'), "counts 5 samples"),
        (lambda f: (f / "classnames.txt").write_text("a\nb\n"), r"classnames\.txt names 2 classes; .* 10"),
        (lambda f: (f / "classnames.txt").unlink(), r"classnames\.txt is missing"),
        (lambda f: (f / "zeroshot_classification_templates.txt").write_text("a digit"),
         r"templates\.txt must have prompts with \{c\}"),
        (lambda f: (f / "test/1.tar").write_text("version https://git-lfs.github.com/spec/v1\n"),
         r"1\.tar is a pointer of Git LFS"),
        (lambda f: [p.unlink() for p in (f / "test").glob("*.tar")], "has no tars: fetch the set again"),
    ],
)  # fmt: skip
def test_a_wrong_layout_names_the_file(tmp_path, opened, damage, message):
    damage(good_set(tmp_path))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        opened("mnist", tmp_path)


def test_a_label_without_a_class_is_told_with_its_tar(tmp_path, opened):
    folder = good_set(tmp_path)
    stand_ins.write_tar(folder / "test/0.tar", [{"png": stand_ins.picture(0), "cls": b"10"}])
    with pytest.raises(BadSample, match=r"0\.tar: s0000000: layout-label-10-of-10-classes"):
        opened("mnist", tmp_path)[0]


def test_a_class_may_have_no_word_for_it(tmp_path, opened):
    names = ["very nearby", "nearby", "near", "", "distant", "very distant"]
    samples = stand_ins.labelled(TASKS["mnist"], 0)
    folder = tmp_path / "wds/vtab/clevr_closest_object_distance"
    stand_ins.write_set(folder, samples, classes=names, templates=["{c} shapes."])
    assert opened("vtab/clevr_closest_object_distance", tmp_path).classes == tuple(names)


def test_names_in_another_order_than_the_shipped_ones_are_refused(tmp_path, opened):
    names = [str(number) for number in (1, 0, *range(2, 10))]
    stand_ins.tfds_labelled(tmp_path, TASKS["mnist"], 0, names=names)
    with pytest.raises(ValueError, match="class 0 is '1', where the task has '0'"):
        opened("mnist", tmp_path)


def test_tfds_with_another_number_of_classes_is_refused(tmp_path, opened):
    stand_ins.tfds_labelled(tmp_path, TASKS["vtab/dtd"], 0, names=["a", "b"])
    with pytest.raises(ValueError, match=r"dtd/1\.0\.0 has 2 classes; the task has 47"):
        opened("vtab/dtd", tmp_path)


def test_what_is_missing_says_where_it_comes_from(tmp_path, opened):
    with pytest.raises(Missing, match=r"djghosh/wds_wilds-fmow_test as ROOT/wds_wilds-fmow_test"):
        opened("wilds/fmow", tmp_path)
    assert "tensorflow_datasets mnist (file_format='array_record')" in where_from(TASKS["mnist"])
    for task in TASKS.values():
        assert where_from(task) != "the source None", task.name


def test_a_question_without_a_field_names_the_file(tmp_path, opened):
    stand_ins.sugar_crepe(tmp_path, 0)
    (tmp_path / "sugar_crepe/add_att.json").write_text(json.dumps({"0": {"filename": "x.jpg"}}))
    with pytest.raises(
        ValueError, match=r"add_att\.json: a question has no caption, negative_caption"
    ):
        opened("sugar_crepe/add_att", tmp_path)


@pytest.mark.parametrize("name, file, content, message", [
    ("winoground", "winoground/examples.jsonl", "{broken", "JSONDecodeError"),
    ("sugar_crepe/add_att", "sugar_crepe/add_att.json",
     '{"0": {"filename": 5, "caption": "a", "negative_caption": "b"}}', "TypeError"),
    ("aro/visual_genome_relation", "aro/visual_genome_relation.json",
     '[{"image_path": "x.jpg", "true_caption": "a", "false_caption": "b", "bbox_x": "left", "bbox_y": 0, '
     '"bbox_w": 1, "bbox_h": 1}]', "invalid literal"),
    ("mmvp_vlm", "mmvp_vlm/Questions.csv", "Question ID,Type,Statement\n1,a,b\n2,a,c\n3,a,d\n",
     "has 3 questions, and they must be pairs"),
])  # fmt: skip
def test_questions_of_another_form_name_the_file(tmp_path, opened, name, file, content, message):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        opened(name, tmp_path)
    assert str(tmp_path / file) in str(error.value)
