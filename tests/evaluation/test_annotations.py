"""What is read of a source besides pixels."""

import dataclasses

from clip_jax.evaluation.annotations import read_annotations


def test_annotations_come_in_the_order_asked_for(memory_source):
    first, second = read_annotations(memory_source(9), [5, 2])
    assert (first.index, first.label, first.group) == (5, 2, "held_out")
    assert second.captions == ("number 2 is blue",)


def test_a_sample_that_cannot_be_read_has_nothing_to_say(memory_source):
    (annotation,) = read_annotations(memory_source(9, bad=(3,)), [3])
    assert annotation == (3, (), None, None, None, None)


def test_a_label_of_minus_one_is_none_and_a_blank_caption_is_left_out(memory_source):
    class Blank(memory_source):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return dataclasses.replace(sample, label=-1, captions=(" ", *sample.captions, ""))

    (annotation,) = read_annotations(Blank(2), [0])
    assert annotation.label is None
    assert annotation.captions == ("number 0 is red",)
