"""The text of HLO is read as it is written."""

import pytest

from clip_jax.planning.hlo.text import Array, Module, arrays_of, bytes_of, stored_elements

TEXT = """HloModule m, entry_computation_layout={(f32[4,2]{1,0})->f32[4,2]{1,0}}

%double (p: f32[4,2]) -> f32[4,2] {
  %p = f32[4,2]{1,0} parameter(0)
  ROOT %sum = f32[4,2]{1,0} add(%p, %p)
}

ENTRY %main (x: f32[4,2]) -> f32[4,2] {
  %x = f32[4,2]{1,0} parameter(0)
  ROOT %out = f32[4,2]{1,0} fusion(%x), kind=kLoop, calls=%double, metadata={op_name="a(b)"}
}
"""


def test_a_module_has_its_computations_and_their_instructions():
    module = Module(TEXT)
    assert set(module.computations) == {"double", "main"}
    assert [each.opcode for each in module.entry.instructions] == ["parameter", "fusion"]
    fusion = module.entry.instructions[1]
    assert fusion.operands == ["x"]
    assert fusion.called == ["double"]
    assert fusion.is_root


def test_users_and_types_are_found_by_name():
    inner = Module(TEXT).computations["double"]
    assert inner.type_of("p") == "f32[4,2]{1,0}"
    assert [user.name for user in inner.users("p")] == ["sum"]


def test_an_element_of_a_tuple_can_be_named_by_its_place():
    text = """ENTRY %main (p: (s32[], (f32[2], pred[]), bf16[8,3])) -> bf16[8,3] {
  %p = (s32[], (f32[2]{0}, pred[]), /*index=2*/bf16[8,3]{1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %sum = bf16[8,3]{1,0} add(%p#2, %p#2)
}
"""
    entry = Module(text).entry
    assert entry.instructions[1].operands == ["p#2", "p#2"]
    assert entry.type_of("p#1") == "(f32[2]{0}, pred[])"
    assert entry.type_of("p#2") == "bf16[8,3]{1,0:T(8,128)(2,1)}"


def test_bytes_are_of_arrays_in_hbm_alone():
    found = Array("bf16", (3, 5), True, "1,0:T(8,128)")
    assert arrays_of("bf16[3,5]{1,0:T(8,128)}") == (found,)
    assert bytes_of("(bf16[3,5]{1,0}, f32[2]{0:S(1)}, s32[])") == 30 + 4


@pytest.mark.parametrize(
    ("dims", "layout", "stored"),
    [
        ((3, 5), "", 3 * 5),
        ((3, 5), "1,0", 3 * 5),
        ((3, 5), "1,0:T(8,128)(2,1)", 8 * 128),
        ((3, 5), "0,1:T(2,128)", 6 * 128),
        ((2, 9, 130), "2,1,0:T(8,128)", 2 * 16 * 256),
        ((9, 2, 130), "2,0,1:T(8,128)", 2 * 16 * 256),
        ((9, 130), "1,0:T(16,128)(2,1)", 16 * 256),
        ((300,), "0:T(256)", 512),
        ((), ":T(128)", 128),
        ((4, 6, 5), "2,1,0:T(*,8,128)", 3 * 8 * 128),
        ((4, 6, 100), "2,1,0:T(8,*,128)", 8 * 640),
    ],
)
def test_an_array_has_room_for_whole_tiles(dims, layout, stored):
    assert stored_elements(dims, layout) == stored


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        Module("HloModule empty")
