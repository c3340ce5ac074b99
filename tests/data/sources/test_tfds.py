"""Prepared TFDS datasets are read by the types of their features."""

import io
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds

from clip_jax.data.samples import BadSample
from clip_jax.data.sources.registry import open_eval_source, open_source


class Photos(tfds.core.GeneratorBasedBuilder):
    """Like coco_captions: captions in a sequence of dictionaries, as are the objects with classes."""

    VERSION = tfds.core.Version("1.2.0")
    image = b""

    def _info(self):
        texts = tfds.features.Sequence({"id": tfds.features.Scalar(np.int64), "text": tfds.features.Text()})  # fmt: skip
        objects = tfds.features.Sequence({"label": tfds.features.ClassLabel(num_classes=80)})
        features = {
            "license": tfds.features.Text(),
            "objects": objects,
            "photo": tfds.features.Image(encoding_format="png"),
            "captions": texts,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(5), "validation": self._generate_examples(2)}

    def _generate_examples(self, count):
        for number in range(count):
            texts = [f"{number} first", f"{number} second"]
            captions = [{"id": 1, "text": text} for text in texts]
            yield (
                number,
                {
                    "license": "mit",
                    "objects": [{"label": 7}] * number,
                    "photo": io.BytesIO(self.image),
                    "captions": captions,
                },
            )


class Digits(tfds.core.GeneratorBasedBuilder):
    """Like CIFAR: classes and no captions."""

    VERSION = tfds.core.Version("1.0.0")
    image = b""

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "coarse": tfds.features.ClassLabel(names=["pet"]),
            "label": tfds.features.ClassLabel(names=["black_cat", "dog"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(4):
            yield number, {"image": io.BytesIO(self.image), "coarse": 0, "label": number % 2}


@pytest.fixture
def prepared(tmp_path, encode, settings):
    """Prepare a dataset and return the settings to read it."""

    def _prepared(builder_class, file_format="array_record"):
        builder_class.image = encode((1, 2, 3))
        builder = builder_class(data_dir=tmp_path / "data", file_format=file_format)
        builder.download_and_prepare(download_dir=tmp_path / "downloads")
        return settings()

    return _prepared


def test_captions_in_a_sequence_of_dictionaries_are_found(prepared, encode):
    source = open_source("tfds:photos", "train", prepared(Photos))
    assert len(source) == 5
    sample = source[0]
    assert sample.image == encode((1, 2, 3))
    first = sample.captions[0].split()[0]
    assert sample.captions == (f"{first} first", f"{first} second")
    assert sample.label is None and sample.group is None and source.classes is None


def test_a_column_that_is_named_wins(prepared, settings):
    prepared(Photos)
    cfg = settings(caption_column="license", image_column="photo")
    assert open_source("tfds:photos", "train", cfg)[0].captions == ("mit",)
    with pytest.raises(
        ValueError,
        match=r"no column 'txt' .*columns are captions/id, captions/text, license, objects/label, photo",
    ):
        open_source("tfds:photos", "train", settings(caption_column="txt"))


def test_classes_make_captions_where_there_are_none(prepared):
    source = open_source("tfds:digits", "train", prepared(Digits))
    assert source.classes == ("black cat", "dog")
    for sample in source:
        assert sample.captions == (f"a photo of a {source.classes[sample.label]}.",)


def test_one_of_several_labels_can_be_named(prepared, settings):
    prepared(Digits)
    source = open_source("tfds:digits", "train", settings(label_column="coarse"))
    assert source.classes == ("pet",) and pickle.loads(pickle.dumps(source))[1].label == 0
    with pytest.raises(ValueError, match=r"no column 'kind' \(data\.label_column\).*coarse, label"):
        open_source("tfds:digits", "train", settings(label_column="kind"))


def test_validation_serves_as_the_test_split(prepared, settings):
    prepared(Photos)
    assert len(open_eval_source(settings(source=("tfds:photos",)))) == 2


def test_a_dataset_without_a_test_split_is_not_evaluated_on(prepared, settings):
    prepared(Digits)
    assert open_eval_source(settings(source=("tfds:digits",))) is None
    with pytest.raises(ValueError, match="no test split; it has train"):
        open_source("tfds:digits", "test", settings())


@pytest.mark.parametrize("name", ["photos:1.2.0", "{}/data/photos", "{}/data/photos/1.2.0"])
def test_a_dataset_is_found_by_version_and_by_folder(prepared, name, tmp_path):
    assert len(open_source(f"tfds:{name.format(tmp_path)}", "train", prepared(Photos))) == 5


def test_the_newest_version_is_taken(prepared, tmp_path):
    cfg = prepared(Photos)
    (tmp_path / "data" / "photos" / "1.2.0").rename(tmp_path / "data" / "photos" / "1.10.0")
    Photos(data_dir=tmp_path / "data", file_format="array_record").download_and_prepare()
    source = open_source("tfds:photos", "train", cfg)
    assert pickle.loads(pickle.dumps(source)).fingerprint == source.fingerprint
    assert "1.10.0" in str(source.__reduce__())


def test_a_copy_in_another_process_reads_the_same(prepared):
    source = open_source("tfds:photos", "train", prepared(Photos))
    assert pickle.loads(pickle.dumps(source))[3] == source[3]


def test_a_dataset_that_is_not_there_is_named_with_the_places(settings):
    with pytest.raises(FileNotFoundError, match=r"tfds:nothing is not prepared; looked in .*data"):
        open_source("tfds:nothing", "train", settings())


def test_a_format_without_random_access_is_refused(prepared, tmp_path):
    cfg = prepared(Photos)
    info = tmp_path / "data" / "photos" / "1.2.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"stored as tfrecord.*file_format='array_record'"):
        open_source("tfds:photos", "train", cfg)


def test_a_damaged_record_is_a_bad_sample_and_its_neighbours_are_not(prepared, tmp_path):
    cfg = prepared(Photos)
    path = next((tmp_path / "data" / "photos" / "1.2.0").glob("*train*array_record*"))
    data = bytearray(path.read_bytes())
    place = data.find(b"first")
    if place < 0:  # the records are compressed
        place = len(data) // 2
    data[place] ^= 0x55
    path.write_bytes(data)
    source = open_source("tfds:photos", "train", cfg)
    reasons = []
    for index in range(5):
        try:
            source[index]
        except BadSample as error:
            reasons.append(error.reason)
    assert reasons and set(reasons) == {"unreadable-record"}
