"""Operations, traffic and collectives of a program are counted as often as they run."""

import dataclasses

import pytest

from clip_jax.planning.hlo.collectives import Collective
from clip_jax.planning.hlo.module import read_program

LOOP = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%body (state: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %state = (s32[], bf16[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[8,16]{1,0} get-tuple-element(%state), index=1
  %w = bf16[16,16]{1,0} constant({...})
  %y = bf16[8,16]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %z = bf16[8,16]{1,0} all-reduce(%y), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %out = (s32[], bf16[8,16]{1,0}) tuple(%i, %z)
}

%condition (state: (s32[], bf16[8,16])) -> pred[] {
  %state = (s32[], bf16[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %bound = s32[] constant(12)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (x: bf16[8,16]) -> bf16[8,128] {
  %x = bf16[8,16]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[8,16]{1,0}) tuple(%zero, %x)
  %loop = (s32[], bf16[8,16]{1,0}) while(%start), condition=%condition, body=%body
  %last = bf16[8,16]{1,0} get-tuple-element(%loop), index=1
  ROOT %all = bf16[8,128]{1,0} all-gather(%last), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={1}
}
"""


def test_a_loop_counts_as_often_as_it_runs():
    assert read_program(LOOP).flops == 12 * 2 * 8 * 16 * 16


def test_a_noted_trip_count_goes_before_the_bound():
    noted = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    assert read_program(noted).flops == 5 * 2 * 8 * 16 * 16


def test_collectives_have_kind_group_bytes_and_count():
    assert read_program(LOOP).collectives == [
        Collective("all-reduce", (0, 1, 2, 3), 2 * 8 * 16, "bf16", 12, "", synchronous=True),
        # What is gathered is the whole: eight devices' parts.
        Collective("all-gather", tuple(range(8)), 8 * 2 * 8 * 16, "bf16", 1, "", synchronous=True),
    ]


def test_a_product_that_must_be_exact_is_counted_apart():
    exact = LOOP.replace(
        "lhs_contracting_dims={1}, rhs",
        "operand_precision={highest,highest}, lhs_contracting_dims={1}, rhs",
    )
    program = read_program(exact)
    assert program.float32_flops == program.flops == 12 * 2 * 8 * 16 * 16


def test_the_compiler_s_cycles_count_as_often_as_the_loop_runs():
    noted = LOOP.replace(
        "rhs_contracting_dims={0}",
        'rhs_contracting_dims={0}, backend_config={"window_config":{"estimated_cycles":"250"}}',
    )
    assert read_program(noted).cycles == 12 * 250


def test_an_instruction_reads_its_operands_and_writes_its_result():
    dot = next(work for work in read_program(LOOP).work if work.flops)
    assert dot.bytes == 2 * (8 * 16 + 16 * 16 + 8 * 16)


IN_PLACE = """HloModule m

%update (stack: f32[12,64], row: f32[1,64], i: s32[]) -> f32[12,64] {
  %stack = f32[12,64]{1,0} parameter(0)
  %row = f32[1,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = f32[12,64]{1,0} dynamic-update-slice(%stack, %row, %i, %zero)
}

ENTRY %main (stack: f32[12,64], row: f32[1,64], i: s32[]) -> f32[12,64] {
  %stack = f32[12,64]{1,0} parameter(0)
  %row = f32[1,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %out = f32[12,64]{1,0} fusion(%stack, %row, %i), kind=kLoop, calls=%update
}
"""


def test_a_slice_that_is_written_in_place_moves_no_more_than_itself():
    (work,) = read_program(IN_PLACE).work
    assert work.bytes == pytest.approx(4 * 64 + 4 * 64 + 4)  # the row in, the row out, its index


def test_a_buffer_that_is_only_passed_on_moves_nothing():
    text = """HloModule m

%add (x: f32[8], flying: f32[1024]) -> (f32[8], f32[1024]) {
  %x = f32[8]{0} parameter(0)
  %flying = f32[1024]{0} parameter(1)
  %y = f32[8]{0} add(%x, %x)
  ROOT %both = (f32[8]{0}, f32[1024]{0}) tuple(%y, %flying)
}

ENTRY %main (x: f32[8], flying: f32[1024]) -> (f32[8], f32[1024]) {
  %x = f32[8]{0} parameter(0)
  %flying = f32[1024]{0} parameter(1)
  ROOT %out = (f32[8]{0}, f32[1024]{0}) fusion(%x, %flying), kind=kLoop, output_to_operand_aliasing={{1}: (1, {})}, calls=%add
}
"""
    (work,) = read_program(text).work
    assert work.bytes == 4 * 8 + 4 * 8


def test_a_slice_reads_what_it_takes():
    text = """ENTRY %main (x: f32[12,64]) -> f32[1,64] {
  %x = f32[12,64]{1,0} parameter(0)
  ROOT %y = f32[1,64]{1,0} slice(%x), slice={[3:4], [0:64]}
}
"""
    (work,) = read_program(text).work
    assert work.bytes == 2 * 4 * 64


BETWEEN_SLICES = """ENTRY %main (x: bf16[75,8,128]) -> token[] {
  %x = bf16[75,8,128]{2,1,0} parameter(0)
  %token = token[] after-all()
  %send = (bf16[75,8,128]{2,1,0}, u32[]{:S(2)}, token[]) send(%x, %token), is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:255}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (bf16[75,8,128]{2,1,0}, u32[]{:S(2)}, token[]) recv(%token), is_host_transfer=true
  %y = bf16[75,8,128]{2,1,0} negate(%x)
  ROOT %done = token[] send-done(%send), is_host_transfer=true
}
"""


def test_what_goes_between_slices_is_written_as_a_send():
    (found,) = read_program(BETWEEN_SLICES).collectives
    assert found == Collective("all-reduce", (0, 256), 2 * 75 * 8 * 128, "bf16", 1, "")
    at_once = "\n".join(line for line in BETWEEN_SLICES.splitlines() if "negate" not in line)
    assert read_program(at_once).collectives == [dataclasses.replace(found, synchronous=True)]
