"""The tables of tasks and suites, shipped and one's own."""

import fnmatch

import pytest

from clip_jax.evaluation.bench.forms import renamed
from clip_jax.evaluation.bench.layouts import shipped_classes, shipped_templates
from clip_jax.evaluation.bench.tasks import catalogue, read_suite, suite_names
from clip_jax.evaluation.evaluators import EVALUATORS
from clip_jax.evaluation.prompts import has_place

# The main metrics of DataComp's tasklist.yml that are not acc1.
MAIN = {
    "vtab/caltech101": "mean_per_class_recall",
    "fgvc_aircraft": "mean_per_class_recall",
    "vtab/flowers": "mean_per_class_recall",
    "vtab/pets": "mean_per_class_recall",
    "retrieval/flickr_1k_test_image_text_retrieval": "mean_recall@1",
    "retrieval/mscoco_2014_5k_test_image_text_retrieval": "mean_recall@1",
    "misc/winogavil": "jaccard_score_10-12",
    "wilds/iwildcam": "F1-macro_all",
    "wilds/fmow": "acc_worst_region",
    "fairness/dollar_street": "acc_top5_wg",
    "fairness/geode": "acc_wg",
}


@pytest.mark.parametrize("name", suite_names())
def test_a_shipped_suite_names_metrics_that_are_measured(name):
    suite = read_suite(name)
    for task in suite.tasks:
        known = [m for each in task.evaluators for m in EVALUATORS[each].metrics]
        assert any(fnmatch.fnmatchcase(task.main, metric) for metric in known)
        assert task.better == "higher"


def test_datacomps_suite_has_its_main_metrics_and_averages():
    suite = read_suite("datacomp38")
    assert len(suite.tasks) == 38
    for task in suite.tasks:
        assert renamed(task.name, {task.main: 1.0}) == {MAIN.get(task.name, "acc1"): 1.0}
    sizes = {title: len(names) for title, names in suite.averages.items()}
    assert sizes == {
        "ImageNet": 1,
        "ImageNet dist. shifts": 6,
        "VTAB": 13,
        "Retrieval": 3,
        "Average": 38,
    }
    assert (
        sum(task.size for task in suite.tasks) + 10_954 + 23_703 == 732_026
    )  # with FairFace, UTKFace


def test_clip_benchmarks_list_has_all_its_sets():
    names = [
        name for task in read_suite("clip_benchmark").tasks for name in (task.name, *task.also)
    ]
    assert len(read_suite("clip_benchmark").tasks) == 41
    assert {"mscoco_captions", "flickr8k", "vtab/cifar10", "voc2007_multilabel"} <= set(names)


def test_shipped_names_and_prompts_fit_the_tasks():
    tasks = {t.name: t for suite in suite_names() for t in read_suite(suite).tasks}
    assert tasks.keys() == catalogue().keys() - {"food101"} | {"food101"}
    counts = 0
    for task in tasks.values():
        names, templates = shipped_classes(task), shipped_templates(task)
        if names is not None:
            counts += 1
            assert len(names) == (1000 if task.prompts == "imagenet" else task.classes)
        assert all(map(has_place, templates or ()))
        if task.tfds is not None and task.kind == "classification":
            assert templates, f"{task.name} may come from TFDS, which has no prompts"
    assert counts >= 15
    imagenet = shipped_classes(tasks["imagenet1k"])
    assert imagenet[0] == "tench" and imagenet[999] == "toilet paper"
    assert len(shipped_templates(tasks["imagenet1k"])) == 80


def suite_file(tmp_path, text):
    (tmp_path / "mine.toml").write_text(text)
    return str(tmp_path / "mine.toml")


def test_a_suite_of_ones_own_names_sources_and_averages(tmp_path):
    path = suite_file(
        tmp_path,
        """
tasks = [
  { name = "mnist", main = "zero_shot_mean_per_class" },
  { name = "dogs", source = "folder:/data/dogs", templates = "dogs.txt", title = "My dogs" },
]
[averages]
Both = "all"
One = ["dogs"]
""",
    )
    suite = read_suite(path)
    first, second = suite.tasks
    assert (first.tfds, first.main) == ("mnist", "zero_shot_mean_per_class")
    assert (second.source, second.kind) == ("folder:/data/dogs", "classification")
    assert second.templates == str(tmp_path / "dogs.txt")  # beside the suite's file
    assert suite.averages == {"Both": ("mnist", "dogs"), "One": ("dogs",)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks = [", "mine.toml is not TOML"),
        ("", "has no tasks"),
        ('tasks = [{ name = "mnits" }]', "'mnits' is not known; the nearest is 'mnist'"),
        ('tasks = [{ name = "flickr30k" }]', "nearest is 'retrieval/flickr_1k_test_image_text"),
        ('tasks = [{ name = "mnist", sise = 3 }]', "has sise, unknown here"),
        ('tasks = [{ name = "mnist", main = "top1" }]', "the nearest is 'zero_shot_top1'"),
        ('tasks = [{ name = "mnist" }, { name = "mnist" }]', "mnist twice"),
        ('tasks = [{ name = "mnist" }]\n[averages]\nA = ["svhn"]', r"'A' must be .*svhn"),
        ('tasks = [{ name = "x", source = "shapes", kind = "captioning" }]', "kind of 'x' must be"),
    ],
)
def test_a_suite_that_cannot_be_meant_is_refused_by_name(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_suite(suite_file(tmp_path, text))


def test_an_unknown_suite_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"datacomp83 is neither .*the nearest is datacomp38"):
        read_suite("datacomp83")
