"""The devices that a collective joins are found in each of HLO's notations."""

import pytest

from clip_jax.planning.hlo.groups import axes_of, replica_group, slices_in


@pytest.mark.parametrize(
    ("attributes", "group"),
    [
        ("replica_groups={{0,2},{1,3}}, use_global_device_ids=true", (0, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", (0, 2, 4, 6)),
        ("replica_groups=mesh['data'=4,'fsdp'=2] {'data'}", (0, 2, 4, 6)),
        ("replica_groups=mesh['data'=4,'fsdp'=2] {'data','fsdp'}", tuple(range(8))),
        ("replica_groups=mesh['all'=8] {'all':(2)4}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}, x", (0, 1)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}, x", (0, 2, 4, 6)),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", (3, 2)),
        ("source_target_pairs={{0,1},{1,2},{2,0}}", (0, 1, 2)),
        ("no groups at all", (0,)),
    ],
)
def test_a_group_is_read(attributes, group):
    assert replica_group(attributes) == group


@pytest.mark.parametrize(
    ("group", "axes"),
    [((0, 2, 4, 6), "data"), ((0, 1), "fsdp"), (tuple(range(8)), "data+fsdp"), ((3,), "none")],
)
def test_a_group_names_the_axes_along_which_it_lies(group, axes):
    assert axes_of(group, (4, 2)) == axes


def test_a_group_may_span_slices():
    assert slices_in((0, 1, 2, 3), 4) == 1
    assert slices_in((0, 4), 4) == 2
