"""The kernel of PyTorch beside NumPy's: the same bits in every block and dtype, from either end."""

from __future__ import annotations

import numpy as np
import pytest

from polyak.averaging.kernel import lerp

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from polyak.frameworks import torch_kernel  # noqa: E402

BLOCK = torch_kernel._SHARE * torch.get_num_threads()
SHAPES = [(1,), (7,), (3, 5, 33), (BLOCK,), (2 * BLOCK + 11,)]
WEIGHTS = [1e-7, 0.001, 0.3, 0.5, 0.9, 1.0 - 1e-7, 1.0]


@pytest.fixture(params=[True, False], ids=["this build", "a build that fuses product and sum"])
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(torch_kernel, "_rounds_twice", lambda dtype: False)


def drawn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Numbers of many sizes, so that products are rounded in each way."""
    draw = np.random.default_rng(seed)
    return torch.from_numpy(draw.normal(size=shape) * 10.0 ** draw.integers(-3, 4, size=shape))


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize(
    ("held", "followed"),
    [("float32", "float32"), ("float64", "float64"), ("float32", "bfloat16"), ("float32", "float16")],
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_have_the_bits_of_numpy(shape: tuple[int, ...], held: str, followed: str) -> None:
    value = drawn(shape, 1).to(getattr(torch, followed))
    shadows = [drawn(shape, 2 + i).to(getattr(torch, held)) for i in range(len(WEIGHTS))]
    seen = value.to(getattr(torch, held)).numpy()
    before = value.clone()
    expected = [lerp(shadow.numpy().copy(), seen, w) for shadow, w in zip(shadows, WEIGHTS, strict=True)]
    with torch.no_grad():
        torch_kernel.move_all([(value, list(zip(shadows, WEIGHTS, strict=True)))])
    assert torch.equal(value, before)
    for shadow, right in zip(shadows, expected, strict=True):
        assert shadow.numpy().tobytes() == right.tobytes()


def test_a_value_may_lie_across_its_shadow() -> None:
    value = drawn((700, 3 * BLOCK // 700), 1).float().t()
    shadow = drawn(tuple(value.shape), 2).float()
    expected = lerp(shadow.numpy().copy(), value.numpy(), 0.01)
    with torch.no_grad():
        torch_kernel.move_all([(value, [(shadow, 0.01)])])
    assert shadow.numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_one_number_anywhere_is_seen(dtype: str, bad: float) -> None:
    value = drawn((2 * BLOCK + 11,), 1).clamp(-100, 100).to(getattr(torch, dtype))
    assert torch_kernel.are_tame([value, torch.empty(0)])
    for place in (0, BLOCK - 1, BLOCK, 2 * BLOCK + 10):
        held = value.clone()
        held[place] = bad
        assert not torch_kernel.are_tame([torch.ones(3), held])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_whose_difference_could_overflow_are_not_tame(dtype: str) -> None:
    assert not torch_kernel.are_tame([torch.tensor([2e38, -2e38], dtype=getattr(torch, dtype))])


def test_numbers_of_one_byte_are_looked_at() -> None:
    assert torch_kernel.are_tame([torch.ones(9).to(torch.float8_e4m3fn)])
    assert not torch_kernel.are_tame([torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)])


def test_fusing_would_be_noticed() -> None:
    """The numbers that are asked tell apart a product that is rounded from one that is not."""
    near = torch.linspace(1.0, 2.0, 2**10 + 7)
    distance = torch.linspace(-0.3, 0.7, 2**10 + 7)
    fused = (near.double() - distance.double() * float(np.float32(0.1))).float()
    assert not torch.equal(fused, near - distance * 0.1)
