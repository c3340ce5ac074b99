"""A collective is synchronous unless the schedule has other work between its start and its end."""

import pytest

from clip_jax.planning.hlo.module import read_program

PROGRAM = """HloModule m, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%begin (p: f32[8,16]) -> (f32[8,16], f32[32,16], u32[]) {
  %p = f32[8,16]{1,0} parameter(0)
  %all = f32[32,16]{1,0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %flying = (f32[8,16]{1,0}, f32[32,16]{1,0}, u32[]{:S(2)}) custom-call(%all), custom_call_target="AsyncCollectiveStart"
}

%wrapped (p: f32[8,16]) -> f32[8,16] {
  %p = f32[8,16]{1,0} parameter(0)
  ROOT %sum = f32[8,16]{1,0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}

ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %x = f32[8,16]{1,0} parameter(0)
OPERATIONS
}
"""
SUM = "replica_groups={{0,1,2,3}}, to_apply=%add"
WORK = "  %w = f32[8,16]{1,0} negate(%x)"
START = f"  %s = f32[8,16]{{1,0}} all-reduce-start(%x), {SUM}"
DONE = "  ROOT %d = f32[8,16]{1,0} all-reduce-done(%s)"
ASYNC_START = "  %s = ((f32[8,16]{1,0}), f32[8,16]{1,0}, u32[]) async-start(%x), calls=%wrapped"
ASYNC_DONE = "  ROOT %d = f32[8,16]{1,0} async-done(%s)"


@pytest.mark.parametrize(
    ("operations", "synchronous"),
    [
        ([f"  ROOT %s = f32[8,16]{{1,0}} all-reduce(%x), {SUM}"], True),
        ([START, WORK, DONE], False),
        ([START, "  %b = f32[128]{0} bitcast(%x)", DONE], True),
        ([WORK, START, DONE], True),
        ([ASYNC_START, WORK, ASYNC_DONE], False),
        ([ASYNC_START, ASYNC_DONE], True),
        (["  %f = (f32[8,16]{1,0}, f32[32,16]{1,0}, u32[]{:S(2)}) fusion(%x), kind=kCustom, calls=%begin", WORK], False),
    ],
    ids=["plain", "hidden", "a name between", "alone", "wrapped", "wrapped alone", "fused"],
)  # fmt: skip
def test_what_is_scheduled_meanwhile_decides(operations, synchronous):
    (found,) = read_program(PROGRAM.replace("OPERATIONS", "\n".join(operations))).collectives
    assert found.synchronous is synchronous
    assert found.count == 1
