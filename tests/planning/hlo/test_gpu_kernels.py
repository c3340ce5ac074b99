"""Kernels of a GPU's program are named and their operations counted."""

import pytest

from clip_jax.planning.hlo.module import read_program

FORWARD = """%fwd = (bf16[2,3,8,16]{3,1,2,0}, f32[2,3,8]{2,1,0}, u8[0]{0}) custom-call(%q, %q, %q),
 custom_call_target="__cudnn$fmhaSoftmax", backend_config={"operation_queue_id": "0",
 "cudnn_fmha_backend_config": {"algorithm": {"tuning_knobs": {"17": "1"}}, "fmha_scale": 0.125,
 "intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "3", "8", "8"]}}}"""
BACKWARD = (
    FORWARD.replace("%fwd", "%bwd")
    .replace("fmhaSoftmax", "fmhaSoftmaxBackward")
    .replace("f32[2,3,8]{2,1,0}", "bf16[2,3,8,16]{3,1,2,0}")
)
CUBLAS = """%gemm = (f32[64,32]{1,0}, s8[100]{0}) custom-call(%a, %b),
 custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config": {"dot_dimension_numbers":
 {"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}"""
TRITON = """%gemm = f32[64,32]{1,0} fusion(%a, %b), kind=kCustom, calls=%inner,
 backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}"""


def module(line: str, dtype: str = "bf16") -> str:
    line = line.replace("\n", "")
    return f"""HloModule m
%inner (x: {dtype}[64,48], y: {dtype}[48,32]) -> f32[64,32] {{
  %x = {dtype}[64,48]{{1,0}} parameter(0)
  %y = {dtype}[48,32]{{1,0}} parameter(1)
  ROOT %d = f32[64,32]{{1,0}} dot(%x, %y), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}
ENTRY %main (q: bf16[2,8,3,16], a: {dtype}[64,48], b: {dtype}[48,32]) -> f32[] {{
  %q = bf16[2,8,3,16]{{3,2,1,0}} parameter(0)
  %a = {dtype}[64,48]{{1,0}} parameter(1)
  %b = {dtype}[48,32]{{1,0}} parameter(2)
  {line}
}}
"""


@pytest.mark.parametrize(
    ("line", "kernel", "flops"),
    [
        (FORWARD, "cuDNN attention, forward", 2 * 2 * (2 * 3 * 8 * 8) * 16),
        (BACKWARD, "cuDNN attention, backward", 5 * 2 * (2 * 3 * 8 * 8) * 16),
        (CUBLAS, "cuBLAS product", 2 * 64 * 32 * 48),
        (TRITON, "Triton product", 2 * 64 * 32 * 48),
    ],
    ids=["forward", "backward", "cublas", "triton"],
)
def test_a_kernel_is_named_and_its_operations_are_counted(line, kernel, flops):
    program = read_program(module(line))
    assert program.kernels == {kernel: 1}
    assert program.flops == flops
    assert program.float32_flops == 0


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize(
    ("kind", "result", "operands"),
    [
        ("Forward", "2,4,4,6", "%image, %kernel"),
        ("BackwardInput", "2,4,4,3", "%out, %kernel"),
        ("BackwardFilter", "6,3,3,3", "%image, %out"),
    ],
)
def test_a_library_s_convolution_counts_in_all_three_directions(kind, result, operands, dtype):
    program = read_program(f"""HloModule m
ENTRY %main (image: {dtype}[2,4,4,3], kernel: {dtype}[6,3,3,3], out: {dtype}[2,4,4,6]) -> f32[] {{
  %image = {dtype}[2,4,4,3]{{3,2,1,0}} parameter(0)
  %kernel = {dtype}[6,3,3,3]{{3,2,1,0}} parameter(1)
  %out = {dtype}[2,4,4,6]{{3,2,1,0}} parameter(2)
  %c = ({dtype}[{result}]{{3,2,1,0}}, u8[0]{{0}}) custom-call({operands}), window={{size=3x3 pad=1_1x1_1}}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv{kind}"
}}
""")
    assert program.kernels == {"cuDNN convolution": 1}
    # Of 4 x 3 places along an axis the kernel meets a number in 10.
    assert program.flops == 2 * 2 * 3 * 6 * 10 * 10
    assert program.float32_flops == (program.flops if dtype == "f32" else 0)


def test_a_library_s_product_of_float32_is_an_exact_one():
    program = read_program(module(CUBLAS, dtype="f32"))
    assert program.float32_flops == 2 * 64 * 32 * 48


def test_room_to_work_in_is_no_traffic():
    with_room, without = (
        read_program(module(CUBLAS.replace("s8[100]", f"s8[{size}]"))) for size in (33_554_432, 0)
    )
    assert with_room.bytes == without.bytes == 2 * (64 * 48 + 48 * 32) + 4 * 64 * 32


def test_other_calls_are_no_kernels():
    line = '%s = f32[4]{0} custom-call(%a), custom_call_target="Sharding"'
    assert read_program(module(line)).kernels == {}
