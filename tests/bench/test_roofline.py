"""bench.roofline reads machine code as counted by hand, and puts a launch's floors where its work says."""

import pytest
import torch

pytest.importorskip("triton")
from bench.harness.marked import KERNELS_PAGE, marked_part, with_part  # noqa: E402
from bench.roofline import page, sass  # noqa: E402
from bench.roofline.__main__ import summary, table  # noqa: E402
from bench.roofline.floors import CUDNN_SHARE, Floor, floor, step_floors  # noqa: E402
from bench.traffic.count import Call  # noqa: E402
from bench.traffic.kernels import HaloLaunch, counted  # noqa: E402
from bench.traffic.step import step_traffic  # noqa: E402
from pggan_fast.kernels.conv import convolve  # noqa: E402
from pggan_fast.kernels.gpu_limits import A100, H200  # noqa: E402

CODE = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;                   /* 0x00000a00ff017b82 */
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;         /* 0x0000000402047981 */
        /*0020*/                   LDGSTS.E.BYPASS.128 [R9], [R2.64] ;      /* 0x0000000002097fae */
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;    /* 0x0000000a0804723c */
        /*0040*/              @!P0 BRA 0x20 ;                               /* 0xfffffffc00008947 */
        /*0050*/                   STG.E desc[UR4][R2.64], R4 ;             /* 0x0000000402007986 */
        /*0060*/                   EXIT ;                                   /* 0x000000000000794d */
        /*0070*/                   BRA 0x70;                                /* 0xfffffffc00fc7947 */
        /*0080*/                   NOP;                                     /* 0x0000000000007918 */
"""


def test_the_loop_counts_as_often_as_it_runs():
    work = sass.work(CODE, steps=10)
    assert list(sass.loops(sass.instructions(CODE))) == [(0x20, 0x40)]
    assert work.instructions == 5 + 10 * 3
    assert work.multiplications == 10 * 16 * 8 * 16
    assert work.bytes == 32 * (16 + 10 * 16)  # LDG once, the copy to shared memory in the loop
    assert not work.is_group_wide


def test_what_does_nothing_takes_its_turn_too():
    """Products wait for each other by NOP; behind the last branch it is padding."""
    code = CODE.replace("LDG.E.128 R4, desc[UR4][R2.64]", "NOP")
    assert len(sass.instructions(code)) == len(sass.instructions(CODE)) == 8


def test_an_unrolled_loop_runs_until_its_products_are_done():
    assert sass.work(CODE, steps=10, multiplications=4 * 16 * 8 * 16).instructions == 5 + 4 * 3


def test_a_warp_has_a_quarter_of_its_groups_products():
    work = sass.work("        /*0000*/  HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;")
    assert work.multiplications == 64 * 128 * 16 / 4 and work.is_group_wide


BRANCHES = """
        /*0000*/                   S2R R24, SR_TID.X ;
        /*0010*/              @!P1 BRA 0x50 ;
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   FADD R4, R4, R4 ;
        /*0040*/                   BRA 0x70 ;
        /*0050*/               @P2 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0060*/                   BRA.DIV UR4, 0x70 ;
        /*0070*/                   SHFL.BFLY PT, R14, R17, R6, 0x1f ;
        /*0080*/              @!P3 BRA 0x70 ;
        /*0090*/              @!P0 BRA 0x10 ;
        /*00a0*/                   EXIT ;
"""


@pytest.mark.parametrize(("executed", "instructions"), [({}, 6), ({"FADD": 1}, 7), ({"SHFL": 3}, 10)])
def test_what_a_turn_executes_says_which_path_it_takes(executed, instructions):
    """The shortest path that there is, the longer branch, and the inner loop three times."""
    assert sass.fewest_executed(BRANCHES, {"LDG": 1, **executed}) == instructions


def test_a_turn_that_no_loop_makes_is_an_error():
    with pytest.raises(ValueError, match="no loop executes"):
        sass.fewest_executed(BRANCHES, {"LDG": 2})


@pytest.mark.parametrize("gpu", [A100, H200], ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("channels", [16, 64])
def test_a_convolution_does_its_products_once_and_fetches_its_taps(gpu, channels):
    x = torch.empty(4, channels, 256, 256, dtype=torch.bfloat16, device="meta", memory_format=torch.channels_last)
    weight = torch.empty_like(x[:1, :, :3, :3].expand(channels, -1, -1, -1), memory_format=torch.channels_last)
    with counted("triton") as traffic:
        convolve(x, weight.to(memory_format=torch.channels_last), size=(256, 256), padding=1)
    call = next(call for call in traffic.calls if call.launch)
    found = floor(call, gpu)
    operations = 2 * 9 * channels * x.numel()
    assert found.tensor == pytest.approx(operations / gpu.half_flops)
    # Nine taps of each value, and the weight for every tile.
    pixels = {16: 128, 64: 256}[channels]
    fetched = 9 * 2 * x.numel() + 9 * channels**2 * 2 * x.numel() / (pixels * channels)
    # Lanes without a part of a narrow weight count as if they had one.
    assert fetched <= found.l2 * gpu.l2_bytes_per_second <= {16: 1.5, 64: 1.15}[channels] * fetched
    assert found.hbm == call.bytes / gpu.hbm_bytes_per_second
    assert found.seconds == max(found.hbm, found.l2, found.tensor, found.issue) == getattr(found, found.bound)


def test_torchs_convolutions_have_bytes_and_operations_alone():
    found = floor(Call("convolution", 43 * 10**8, 1, 79e10, None), H200)
    assert found.hbm == pytest.approx(1e-3) and found.tensor == pytest.approx(1e-3 / CUDNN_SHARE)
    assert (found.l2, found.issue, found.bound) == (0, 0, "tensor")


def test_passes_by_sign_bits_have_instructions_too():
    """A tensor of 33 MB and its bits, read and written: memory binds them on an H200."""
    found = floor(Call("bias_act_with_sign_bits_", 33 << 20, 1, 0.0, None), H200)
    assert found.bound == "hbm" and found.issue == pytest.approx((1 << 20) * 49 / 32 / H200.issue_per_second)


def test_auto_takes_halo_tiles_for_the_last_blocks():
    calls = step_traffic("auto", 256, 2, bf16=True, fmap_base=2048).calls  # 16 channels at 256 px
    launches = [call.launch for call in calls if isinstance(call.launch, HaloLaunch)]
    assert {"epilogue", "pixel_norm", "in_mask", "masked weight gradient"} <= {launch.fused for launch in launches}
    plain = max(call.operations for call in calls if call.name == "conv_halo" and call.launch.fused == "epilogue")
    assert plain == 2 * 9 * 16 * 16 * 2 * 256**2
    launch = HaloLaunch("epilogue", "plain", 16, 16, 1 << 24, torch.bfloat16)
    call = Call("conv_halo", 43 * 10**8, 1, 0.0, launch)
    found = floor(call, H200)
    assert found.issue == pytest.approx((1 << 20) * 119 / H200.issue_per_second)
    assert found.hbm == pytest.approx(1e-3) and found.l2 == pytest.approx(1.25 * 4.3e9 / 6e12)
    wide = floor(call._replace(launch=launch._replace(dtype=torch.float32)), H200)
    assert wide.tensor == pytest.approx(2 * found.tensor)
    assert wide.issue == pytest.approx((1 << 20) * 212 / H200.issue_per_second)


@pytest.fixture
def without_a_gpu(monkeypatch):
    """Let convolutions be chosen for the modelled GPU, also where another is here and in use."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)


# The least is what the step's convolutions alone take (docs/kernels.md), which a trace that lost launches may fall
# below; the most is about a tenth of a millisecond over what the step took when that was written.
@pytest.mark.parametrize(
    ("resolution", "batch", "least", "most"), [(64, 16, 9.7, 11.0), (256, 8, 9.8, 12.0), (1024, 4, 8.7, 11.2)]
)
def test_no_launch_made_a_step_slower(without_a_gpu, resolution, batch, least, most):
    """The whole step in bf16 on an H200, modelled, with the implementations that "auto" takes."""
    found = step_floors(resolution, batch, H200)
    assert least <= 1e3 * sum(each.seconds for each in found) <= most


def test_the_page_has_the_floors_that_are_printed(without_a_gpu):
    assert marked_part(KERNELS_PAGE.read_text(), page.COMMAND) == page.part(), f"{page.COMMAND} writes it anew"


def test_a_page_without_marks_is_not_written():
    text = "a\n\n<!-- written by `b` -->\n\nc\n\n<!-- end -->\n\nd"
    assert with_part(text, "b", r"\1") == text.replace("c", r"\1") and marked_part(text, "b") == "c"
    with pytest.raises(ValueError, match="has 0 parts"):
        with_part("a", "b", "c")


def test_the_table_adds_what_is_alike():
    slow, fast = Floor("slow", "8x4", 1, 2e-3, 0, 1e-3, 0), Floor("fast", "", 1, 1e-6, 0, 0, 3e-6)
    assert "5.00 ms" in summary([slow, slow, Floor("last", "", 1, 0, 1e-3, 0, 0)])
    rows = table([fast, slow, slow], 5).splitlines()[2:]
    assert rows[0].startswith("| slow | 8x4 | 2 | 2000 | hbm |") and rows[1].startswith("| fast |  | 1 | 3 | issue |")
    twice = table([Floor("of two launches", "", 2, 2e-3, 0, 1e-3, 0)], 5)
    assert twice.splitlines()[-1] == "| of two launches |  | 2 | 1000 | hbm | 1000 | 0 | 500 | 0 |"


def test_the_table_has_columns_for_machine_code_where_there_is_some():
    torchs, ours = Floor("torchs", "", 1, 1e-3, 0, 0, 0), Floor("ours", "", 1, 2e-3, 0, 0, 0, 32, 4096, 1.5)
    assert table([torchs], 5).splitlines()[0].endswith("| issue |")
    head, rule, *rows = table([torchs, ours], 5).splitlines()
    assert head.endswith("| registers | shared KB | waves |") and rows[0].endswith("| 32 | 4 | 1.5 |")
    assert {line.count("|") for line in (head, rule, *rows)} == {13}
