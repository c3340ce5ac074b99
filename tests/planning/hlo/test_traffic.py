"""The bytes of three small programs are those of a recount by hand."""

from clip_jax.planning.hlo.module import read_program

# A loop of 12 turns. In each, a fusion in a fusion takes one block out of a stack of weights and
# another puts one block into a stack of results; both stacks are carried through the loop.
NESTED = """HloModule nested

%take (stack: bf16[12,256,128], i: s32[]) -> bf16[256,128] {
  %stack = bf16[12,256,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %block = bf16[1,256,128]{2,1,0} dynamic-slice(%stack, %i, %zero, %zero), dynamic_slice_sizes={1,256,128}
  ROOT %flat = bf16[256,128]{1,0} bitcast(%block)
}

%product (stack: bf16[12,256,128], x: bf16[64,256], i: s32[]) -> bf16[64,128] {
  %stack = bf16[12,256,128]{2,1,0} parameter(0)
  %x = bf16[64,256]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %w = bf16[256,128]{1,0} fusion(%stack, %i), kind=kLoop, calls=%take
  ROOT %y = bf16[64,128]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
}

%put (stack: f32[12,64,128], y: bf16[64,128], i: s32[]) -> f32[12,64,128] {
  %stack = f32[12,64,128]{2,1,0} parameter(0)
  %y = bf16[64,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %wide = f32[64,128]{1,0} convert(%y)
  %row = f32[1,64,128]{2,1,0} bitcast(%wide)
  ROOT %new = f32[12,64,128]{2,1,0} dynamic-update-slice(%stack, %row, %i, %zero, %zero)
}

%store (stack: f32[12,64,128], y: bf16[64,128], i: s32[]) -> f32[12,64,128] {
  %stack = f32[12,64,128]{2,1,0} parameter(0)
  %y = bf16[64,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %new = f32[12,64,128]{2,1,0} fusion(%stack, %y, %i), kind=kLoop, calls=%put
}

%body (state: (s32[], bf16[12,256,128], f32[12,64,128])) -> (s32[], bf16[12,256,128], f32[12,64,128]) {
  %state = (s32[], bf16[12,256,128]{2,1,0}, f32[12,64,128]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %weights = bf16[12,256,128]{2,1,0} get-tuple-element(%state), index=1
  %results = f32[12,64,128]{2,1,0} get-tuple-element(%state), index=2
  %x = bf16[64,256]{1,0} constant({...})
  %y = bf16[64,128]{1,0} fusion(%weights, %x, %i), kind=kOutput, calls=%product
  %stored = f32[12,64,128]{2,1,0} fusion(%results, %y, %i), kind=kLoop, calls=%store
  ROOT %out = (s32[], bf16[12,256,128]{2,1,0}, f32[12,64,128]{2,1,0}) tuple(%i, %weights, %stored)
}

%condition (state: (s32[], bf16[12,256,128], f32[12,64,128])) -> pred[] {
  %state = (s32[], bf16[12,256,128]{2,1,0}, f32[12,64,128]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %bound = s32[] constant(12)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (weights: bf16[12,256,128], results: f32[12,64,128]) -> f32[12,64,128] {
  %weights = bf16[12,256,128]{2,1,0} parameter(0)
  %results = f32[12,64,128]{2,1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[12,256,128]{2,1,0}, f32[12,64,128]{2,1,0}) tuple(%zero, %weights, %results)
  %loop = (s32[], bf16[12,256,128]{2,1,0}, f32[12,64,128]{2,1,0}) while(%start), condition=%condition, body=%body
  ROOT %last = f32[12,64,128]{2,1,0} get-tuple-element(%loop), index=2
}
"""


def test_a_stack_counts_by_the_block_that_a_fusion_in_a_fusion_takes_or_puts():
    product = 65_536 + 32_768 + 16_384 + 4  # a block, x, y, and the number of the turn
    store = 16_384 + 32_768 + 4  # y, a block in float32, and the number of the turn
    program = read_program(NESTED)
    assert program.bytes == program.tiled_bytes == 12 * (product + store) == 1_966_176
    assert program.flops == 12 * 2 * 64 * 256 * 128


RENAMED = """HloModule renamed

%rename (p: bf16[64,256]) -> bf16[128,128] {
  %p = bf16[64,256]{1,0} parameter(0)
  ROOT %b = bf16[128,128]{1,0} bitcast(%p)
}

%product (x: bf16[64,256], w: bf16[128,8]) -> bf16[128,8] {
  %x = bf16[64,256]{1,0} parameter(0)
  %same = bf16[128,128]{1,0} fusion(%x), kind=kLoop, calls=%rename
  %w = bf16[128,8]{1,0} parameter(1)
  ROOT %y = bf16[128,8]{1,0} convolution(%same, %w), dim_labels=bf_io->bf
}

ENTRY %main (x: bf16[64,256], w: bf16[128,8]) -> bf16[128,8] {
  %x = bf16[64,256]{1,0} parameter(0)
  %w = bf16[128,8]{1,0} parameter(1)
  ROOT %y = bf16[128,8]{1,0} fusion(%x, %w), kind=kOutput, calls=%product
}
"""


def test_what_a_fusion_in_a_fusion_only_renames_is_read():
    assert read_program(RENAMED).bytes == 2 * 64 * 256 + 2 * 128 * 8 + 2 * 128 * 8


TILED = """HloModule tiled

ENTRY %main (x: bf16[197,64], bias: f32[3,77], flags: pred[5,40]) -> bf16[64,197] {
  %x = bf16[197,64]{1,0:T(8,128)(2,1)} parameter(0)
  %bias = f32[3,77]{1,0:T(4,128)} parameter(1)
  %flags = pred[5,40]{1,0:T(8,128)(4,1)} parameter(2)
  ROOT %y = bf16[64,197]{0,1:T(8,128)(2,1)} custom-call(%x, %bias, %flags), custom_call_target="any"
}
"""


def test_arrays_are_stored_in_whole_tiles():
    program = read_program(TILED)
    assert program.bytes == 2 * 197 * 64 + 4 * 3 * 77 + 5 * 40 + 2 * 64 * 197 == 51_556
    # 197 rows to 200, 64 numbers to 128; 3 to 4 and 77 to 128; 5 to 8 and 40 to 128. The result's
    # minor axis is its first.
    assert program.tiled_bytes == 2 * (2 * 200 * 128) + 4 * 4 * 128 + 8 * 128 == 105_472


KERNEL = """HloModule kernel

ENTRY %main (x: bf16[64,128], y: f32[1024]) -> bf16[64,128] {
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %y = f32[1024]{0:T(1024)} parameter(1)
  %room = f32[4096]{0:T(1024)} custom-call(), custom_call_target="AllocateBuffer"
  %ahead = (f32[1024]{0:T(1024)S(1)}, f32[1024]{0:T(1024)}, u32[]{:S(2)}) copy-start(%y)
  %there = f32[1024]{0:T(1024)S(1)} copy-done(%ahead)
  %slice = f32[256]{0:T(256)S(1)} slice(%y), slice={[0:256]}
  ROOT %z = bf16[64,128]{1,0:T(8,128)(2,1)} custom-call(%x, %there), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"TUzv","cost_estimate":{"bytes_accessed":"36864","flops":"123456","transcendentals":"7"}}}
}
"""


def test_a_kernel_costs_what_it_states_and_room_for_a_result_costs_nothing():
    program = read_program(KERNEL)
    copy, part = 4 * 1024, 4 * 256  # read from memory and written into the chip
    kernel = 2 * 64 * 128 + 2 * 64 * 128  # of the 36,864 that it states, y lies in the chip
    assert program.bytes == copy + part + kernel == 37_888
    assert program.flops == 123_456
    assert [work.background for work in program.work] == [True, False, False]
    assert program.unpriced == []


def test_a_kernel_that_states_no_cost_is_named():
    silent = KERNEL.replace('"cost_estimate"', '"something_else"')
    program = read_program(silent)
    assert program.unpriced == ["z"]
    assert program.flops == 0
    assert program.bytes == 37_888  # its operands and results
