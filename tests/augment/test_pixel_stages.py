"""What all stages that change pixels have in common."""

import math
import re

import pytest
import torch
from cl_augment import ColorJitter, GaussianBlur, RandomGrayscale, Sobel, Solarize, sample_keys
from torch import Tensor, nn
from torch.testing import assert_close

STAGES = [ColorJitter(), ColorJitter(hue=0), RandomGrayscale(0.5), GaussianBlur(), Solarize(0.5), Sobel(0.5)]
KINDS = [ColorJitter, RandomGrayscale, GaussianBlur, Solarize, Sobel]
# The masked path computes every image, so it may round otherwise; where it has no reason to, it must not.
ATOL_MASKED = {"ColorJitter": 1e-6, "GaussianBlur": 1e-6}

each_stage = pytest.mark.parametrize("stage", STAGES, ids=repr)
each_kind = pytest.mark.parametrize("kind", KINDS)
each_size = pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 48)])


def images(n: int = 21, c: int = 3, h: int = 32, w: int = 32) -> Tensor:
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(0))


def some_keys(n: int = 21) -> Tensor:
    return sample_keys(torch.arange(n), seed=0, epoch=0)


def draws_where(stage: nn.Module, batch: Tensor, chosen: Tensor) -> dict[str, Tensor]:
    return stage.draw(some_keys(len(batch)), batch.shape) | {"batch_prob": chosen}


# The batch


@each_size
@each_stage
def test_an_image_is_the_same_wherever_in_the_batch_it_is(stage, height, width):
    batch, keys = images(h=height, w=width), some_keys()
    places = torch.randperm(21, generator=torch.Generator().manual_seed(1))
    assert_close(stage(batch[places], keys[places]), stage(batch, keys)[places], rtol=0, atol=0)


@pytest.mark.parametrize("chunks", [1, 2, 3, 7])
@each_size
@each_stage
def test_an_image_is_the_same_however_the_batch_is_split(stage, height, width, chunks):
    batch, keys = images(h=height, w=width), some_keys()
    parts = [stage(*part) for part in zip(batch.chunk(chunks), keys.chunk(chunks), strict=True)]
    assert len(parts) == chunks
    assert_close(torch.cat(parts), stage(batch, keys), rtol=0, atol=0)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@each_stage
@pytest.mark.usefixtures("two_threads")
def test_an_image_alone_is_the_same_although_threads_share_it(stage):
    batch, keys = images(4, h=256, w=256), some_keys(4)  # torch splits sums from 2**15 numbers on
    alone = torch.cat([stage(batch[i : i + 1], keys[i : i + 1]) for i in range(4)])
    assert_close(alone, stage(batch, keys), rtol=0, atol=0)


@each_stage
def test_a_batch_without_images_stays_one(stage):
    assert stage(images(0), some_keys(0)).shape == (0, 3, 32, 32)


@each_stage
def test_images_may_lie_in_memory_as_they_like(stage):
    batch, keys = images(), some_keys()
    expected = stage(batch, keys)
    assert_close(stage(batch.contiguous(memory_format=torch.channels_last), keys), expected, rtol=0, atol=1e-6)
    assert_close(stage(batch.transpose(2, 3).contiguous().transpose(2, 3), keys), expected, rtol=0, atol=1e-6)
    same = batch[:1].expand_as(batch)  # of one memory for all
    assert_close(stage(same, keys), stage(same.contiguous(), keys), rtol=0, atol=0)


# The choice of images


@each_stage
def test_images_that_are_not_chosen_stay_bit_by_bit_and_the_others_change(stage):
    batch, chosen = images(), torch.arange(21) % 3 == 1
    actual = stage.replay(batch, draws_where(stage, batch, chosen))
    assert ((actual != batch).flatten(1).any(dim=1) == chosen).all()


@each_stage
def test_no_image_changes_if_none_is_chosen(stage):
    batch = images()
    actual = stage.replay(batch, draws_where(stage, batch, torch.zeros(21, dtype=torch.bool)))
    assert_close(actual, batch, rtol=0, atol=0)


@each_kind
def test_a_stage_of_probability_0_changes_nothing(kind):
    assert_close(kind(p=0.0)(images(), some_keys()), images(), rtol=0, atol=0)


@each_kind
def test_a_stage_of_probability_1_changes_every_image(kind):
    assert ((kind(p=1.0)(images(), some_keys()) - images()).abs().amax(dim=(1, 2, 3)) > 1e-4).all()


@each_kind
def test_a_choice_by_hand_is_kept_to_by_a_stage_of_any_probability(kind):
    batch, chosen = images(), torch.arange(21) % 2 == 0
    for p in (0.0, 1.0):
        actual = kind(p=p).replay(batch, draws_where(kind(), batch, chosen))
        assert ((actual != batch).flatten(1).any(dim=1) == chosen).all()


# Draw and replay


@each_stage
def test_a_call_is_a_draw_and_its_replay(stage):
    batch, keys = images(), some_keys()
    assert_close(stage(batch, keys), stage.replay(batch, stage.draw(keys, batch.shape)), rtol=0, atol=0)


@each_stage
def test_every_draw_has_a_row_for_each_image(stage):
    assert {len(values) for values in stage.draw(some_keys(), images().shape).values()} == {21}


@each_stage
def test_the_input_is_kept_unless_it_may_be_overwritten(stage):
    batch = images()
    stage.replay(batch, stage.draw(some_keys(), batch.shape))
    assert_close(batch, images(), rtol=0, atol=0)


@each_stage
def test_a_draw_is_kept_by_its_replay(stage):
    draws, again = (stage.draw(some_keys(), images().shape) for _ in range(2))
    stage.replay(images(), draws)
    assert_close(draws, again, rtol=0, atol=0)


@each_stage
def test_overwriting_the_input_changes_no_result(stage):
    draws = stage.draw(some_keys(), images().shape)
    expected = stage.replay(images(), draws)
    assert_close(stage.replay(images(), draws, inplace=True), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@each_stage
def test_a_stage_keeps_the_dtype_of_its_images(stage, dtype):
    out = stage(images().to(dtype), some_keys())
    assert out.dtype == dtype
    expected = stage(images().to(dtype).float(), some_keys())
    # each operation rounds, and a hue from 1 to 2 turns of bfloat16 by up to 1/256, which is 6/256 of the chroma
    assert_close(out.float(), expected, rtol=0, atol=0.1 if dtype == torch.bfloat16 else 0.02)


@each_stage
def test_bytes_are_taken_as_their_share_of_255(stage):
    batch = (255 * images()).to(torch.uint8)
    assert_close(stage(batch, some_keys()), stage(batch / 255, some_keys()), rtol=0, atol=0)


# The masked path, where the choice is not known on the host


@each_size
@each_stage
def test_the_masked_path_is_the_other_one(stage, height, width, monkeypatch):
    batch = images(96, h=height, w=width)
    draws = stage.draw(some_keys(96), batch.shape)
    expected = stage.replay(batch, draws)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    actual = stage.replay(batch, draws)
    monkeypatch.undo()
    assert_close(actual, expected, rtol=0, atol=ATOL_MASKED.get(type(stage).__name__, 0))


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("stage", STAGES[1:], ids=repr)
def test_the_masked_path_is_the_other_one_for_other_than_three_channels(stage, channels, monkeypatch):
    batch = images(48, channels)
    draws = stage.draw(some_keys(48), batch.shape)
    expected = stage.replay(batch, draws)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    actual = stage.replay(batch, draws)
    monkeypatch.undo()
    assert_close(actual, expected, rtol=0, atol=ATOL_MASKED.get(type(stage).__name__, 0))


@each_stage
def test_the_masked_path_leaves_images_that_are_not_chosen_bit_by_bit(stage, monkeypatch):
    batch, chosen = images(), torch.arange(21) % 3 == 1
    draws = draws_where(stage, batch, chosen)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    actual = stage.replay(batch, draws)
    monkeypatch.undo()
    assert ((actual != batch).flatten(1).any(dim=1) == chosen).all()


@each_stage
def test_the_masked_path_keeps_its_input_unless_it_may_be_overwritten(stage, monkeypatch):
    batch = images()
    draws = stage.draw(some_keys(), batch.shape)
    expected = stage.replay(batch, draws)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    stage.replay(batch, draws)
    overwriting = stage.replay(images(), draws, inplace=True)
    monkeypatch.undo()
    assert_close(batch, images(), rtol=0, atol=0)
    assert_close(overwriting, expected, rtol=0, atol=1e-6)


@each_stage
def test_the_masked_path_of_an_image_is_the_same_however_the_batch_is_split(stage, monkeypatch):
    batch = images()
    draws = stage.draw(some_keys(), batch.shape)
    halves = [{name: values[span] for name, values in draws.items()} for span in (slice(0, 8), slice(8, None))]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    together = stage.replay(batch, draws)
    apart = [stage.replay(batch[:8], halves[0]), stage.replay(batch[8:], halves[1])]
    monkeypatch.undo()
    assert_close(torch.cat(apart), together, rtol=0, atol=0)


def test_the_stages_compile_to_one_graph_with_the_same_result():
    stages = [ColorJitter(), RandomGrayscale(), GaussianBlur(), Solarize(), Sobel(0.5)]

    def one_after_the_other(batch: Tensor, keys: Tensor) -> list[Tensor]:
        return [stage(batch, keys) for stage in stages]

    compiled = torch.compile(one_after_the_other, fullgraph=True, backend="eager")
    actual = compiled(images(), some_keys())
    assert_close(actual, one_after_the_other(images(), some_keys()), rtol=0, atol=1e-6)


# Errors


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
@each_kind
def test_a_stage_says_that_p_is_no_probability(kind, p):
    with pytest.raises(ValueError, match=f"^{re.escape(f'`p` is a probability in [0, 1], got {p}.')}$"):
        kind(p=p)


@each_kind
def test_a_stage_says_that_images_leave_0_to_1(kind):
    message = "`images` must lie in [0, 1], got values from 0 to 1.5."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        kind()(torch.tensor([0.0, 1.5]).expand(1, 3, 2, 2), some_keys(1))
