"""The picture of an augmentation: what is in it, what stands beneath, and the command that draws it."""

import re
import subprocess
import sys
from pathlib import Path

import cl_augment
import kornia.augmentation
import numpy as np
import pytest
import torch
from cl_augment import (
    BYOLAugment,
    ColorJitter,
    EvalTransform,
    GaussianBlur,
    KorniaStage,
    LinearEvalAugment,
    RandomGrayscale,
    RandomResizedCropFlip,
    RandomStroke,
    SimCLRAugment,
    Sobel,
    TwoViews,
    preview,
    sample_keys,
)
from cl_augment._captions import applies, caption
from cl_augment._cards import as_rgb, fit, shorten, wrap
from cl_augment._glyphs import text_ink
from cl_augment._png import write_png
from cl_augment._preview_command import find_images, main
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close


def images(n: int = 2, c: int = 3, h: int = 40, w: int = 44) -> Tensor:
    return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def some_keys(n: int = 2, *, epoch: int = 0) -> Tensor:
    return sample_keys(torch.arange(n), seed=0, epoch=epoch)


def levels(image: Tensor) -> np.ndarray:
    """A float image (3, h, w) in 0..255, as drawn."""
    return np.rint(np.clip(image.numpy(), 0, 1) * 255).astype(int)


def places(part: np.ndarray, picture: Tensor, *, within: int = 0) -> list[tuple[int, int]]:
    """Where `part` is in the picture, top and left, each value by up to `within` levels off."""
    whole = picture.numpy().astype(int)
    _, h, w = part.shape
    y, x = divmod(int(part[0].argmin()), w)  # a dark pixel is in few places of a white sheet
    dark = whole[:, y : whole.shape[1] - h + 1 + y, x : whole.shape[2] - w + 1 + x]
    return [
        (int(top), int(left))
        for top, left in np.argwhere(np.abs(dark - part[:, y, x][:, None, None]).max(0) <= within)
        if np.abs(whole[:, top : top + h, left : left + w] - part).max() <= within
    ]


def kind(stage: nn.Module) -> str:
    return type(stage).__name__


def written(words: str, *, ink: int, scale: int) -> np.ndarray:
    """Words on white ground."""
    return np.where(text_ink(words, scale=scale).numpy(), ink, 255)[None].repeat(3, axis=0)


# What the picture shows


@pytest.mark.parametrize("augment", [SimCLRAugment(96), BYOLAugment(96), LinearEvalAugment(96)], ids=kind)
def test_the_image_after_each_stage_is_in_the_picture_from_left_to_right(augment):
    batch, keys = images(), some_keys()
    picture = preview(batch, augment, keys=keys, size=96)
    rows = []
    for number in range(2):
        for stages, drawn in zip(augment.stages(), augment.draw(batch, keys), strict=True):
            view, lefts, tops = batch, [], []
            for stage, params in zip(stages, drawn, strict=True):
                view = stage.replay(view, params)
                # a batch of one may round otherwise than a batch of two
                found = places(levels(view[number]), picture, within=1)
                # a stage that was not applied leaves the image, which is then found again where it was before
                left = next(x for _, x in found if not lefts or x > lefts[-1])
                lefts.append(left)
                tops += [y for y, x in found if x == left]
            assert len(set(tops)) == 1
            rows.append(tops[0])
    assert rows == sorted(set(rows))


def test_the_first_card_is_the_image_itself():
    batch = images(1, h=96, w=96)
    for same in (batch, batch.float() / 255):
        assert places(batch[0].numpy(), preview(same, SimCLRAugment(96), keys=some_keys(1), size=96)) == [(39, 16)]


def test_the_last_card_is_the_view_before_it_is_normalised():
    batch, keys = images(1), some_keys(1)
    view, _ = SimCLRAugment(96)(batch, keys)
    picture = preview(batch, SimCLRAugment(96, mean=(0.5,) * 3, std=(0.1,) * 3), keys=keys, size=96)
    assert max(x for _, x in places(levels(view[0]), picture)) == 16 + 5 * (96 + 12)


def test_the_views_of_one_image_end_below_each_other_though_one_has_more_stages():
    batch, keys = images(1), some_keys(1)
    picture = preview(batch, BYOLAugment(96), keys=keys, size=96)
    ends = [max(places(levels(view[0]), picture), key=lambda place: place[1]) for view in BYOLAugment(96)(batch, keys)]
    assert ends[0][1] == ends[1][1] == 16 + 6 * (96 + 12)
    assert ends[0][0] < ends[1][0]


@pytest.mark.parametrize(("side", "factor"), [(16, 12), (28, 7), (32, 6), (96, 2), (100, 2), (192, 1), (224, 1)])
def test_small_views_are_enlarged_by_a_whole_number(side, factor):
    view = LinearEvalAugment(side)(images(1), some_keys(1))[0]
    large = np.kron(levels(view), np.ones((1, factor, factor), int))
    assert places(large, preview(images(1), LinearEvalAugment(side), keys=some_keys(1)))


def test_images_of_a_list_are_shown_as_each_alone():
    batch = [images(1, h=40, w=90)[0], images(1, h=70, w=50)[0]]
    picture = preview(batch, SimCLRAugment(96), keys=some_keys(), size=96)
    for number, image in enumerate(batch):
        view, _ = SimCLRAugment(96)(image[None], some_keys()[number : number + 1])
        assert places(levels(view[0]), picture, within=1)


def test_a_single_stage_shows_what_its_call_returns():
    batch, keys = images(1, h=96, w=96), some_keys(1)
    for stage in (ColorJitter(p=1.0), EvalTransform(96), kornia.augmentation.RandomAffine(30.0, p=1.0)):
        called = KorniaStage(stage) if isinstance(stage, kornia.augmentation.RandomAffine) else stage
        assert places(levels(called(batch, keys)[0]), preview(batch, stage, keys=keys, size=96)) == [(29, 124)]


def test_modules_of_other_people_are_stages():
    augment = TwoViews(RandomResizedCropFlip(96), kornia.augmentation.RandomErasing(p=1.0), RandomStroke())
    view, _ = augment(images(1), some_keys(1))
    assert places(levels(view[0]), preview(images(1), augment, keys=some_keys(1), size=96), within=1)


def test_the_picture_follows_from_the_keys():
    augment = SimCLRAugment(32)
    picture = preview(images(), augment, keys=some_keys())
    assert torch.equal(picture, preview(images(), augment, keys=some_keys()))
    assert not torch.equal(picture, preview(images(), augment, keys=some_keys(epoch=1)))


@pytest.mark.parametrize(
    "augment", [SimCLRAugment(32), ColorJitter(), kornia.augmentation.RandomAffine(30.0)], ids=kind
)
def test_without_keys_the_picture_follows_from_the_generator(augment):
    same = [preview(images(), augment, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*same)


def test_rows_limits_the_picture_to_the_first_images():
    augment = SimCLRAugment(32)
    few = preview(images(6), augment, keys=some_keys(6), rows=2)
    assert torch.equal(few, preview(images(6)[:2], augment, keys=some_keys(6)[:2]))


def test_it_leaves_the_images_as_they_are():
    batch = images().float() / 255
    before = batch.clone()
    preview(batch, TwoViews(ColorJitter(p=1.0), RandomGrayscale(1.0), Sobel()), keys=some_keys())
    assert torch.equal(batch, before)


def test_values_beyond_0_and_1_are_shown_as_0_and_1():
    assert as_rgb(torch.tensor([-1.0, 0.0, 0.5, 1.0, 3.0]).expand(3, 2, 5))[0, 0].tolist() == [0, 0, 128, 255, 255]


def test_one_channel_is_grey_and_other_than_three_are_their_mean():
    one = images(1, c=1)[0]
    assert torch.equal(as_rgb(one), one.expand(3, -1, -1))
    five = images(1, c=5)[0]
    assert_close(as_rgb(five)[1].double(), five.double().mean(0), rtol=0, atol=0.5 + 1e-4)


def test_an_image_that_is_not_square_is_centred_on_white():
    card = fit(torch.zeros(3, 40, 20, dtype=torch.uint8), 100)  # twice as large, not two and a half times
    expected = torch.full((3, 100, 100), 255, dtype=torch.uint8)
    expected[:, 10:90, 30:70] = 0
    assert torch.equal(card, expected)


def test_a_large_image_is_shrunk_without_aliasing():
    stripes = (torch.arange(400) % 2 * 255).to(torch.uint8).expand(3, 200, 400)
    card = fit(stripes, 100)
    assert card[:, :24].min() == 255
    assert card[:, 25:75, 1:-1].float().sub(127.5).abs().max() < 10


def test_a_colour_jitter_says_its_numbers_beneath_its_image():
    picture = preview(images(1, h=96, w=96), ColorJitter(p=1.0), keys=some_keys(1), size=96)
    params = ColorJitter(p=1.0).draw(some_keys(1), torch.Size([1, 3, 96, 96]))
    tops = []
    for name in ("brightness", "contrast", "saturation"):
        [(top, left)] = places(written(f"{name} {params[name].item():.2f}", ink=80, scale=1), picture)
        assert left == 124
        tops.append(top)
    assert tops == [128, 138, 148]


def test_what_is_said_of_a_stage_that_is_not_applied_is_faint():
    picture = preview(images(1), TwoViews(RandomResizedCropFlip(192), GaussianBlur(0.0)), keys=some_keys(1))
    assert len(places(written("not applied", ink=175, scale=2), picture)) == 2
    assert len(places(written("GaussianBlur", ink=175, scale=2), picture)) == 2
    assert len(places(written("original", ink=0, scale=2), picture)) == 1


# Captions


def test_a_crop_is_said_by_its_box_and_flip():
    params = {"top": 3, "left": 14, "height": 159, "width": 26, "flip": True}
    drawn = {name: torch.tensor([value]) for name, value in params.items()}
    assert caption(RandomResizedCropFlip(32), drawn) == ["top 3", "left 14", "height 159", "width 26", "flip yes"]
    assert caption(RandomResizedCropFlip(32), drawn | {"flip": torch.tensor([False])})[-1] == "flip no"


def test_a_colour_jitter_is_said_by_factors_hue_and_order():
    drawn = {
        "brightness": torch.tensor([0.756]),
        "contrast": torch.tensor([1.0]),
        "saturation": torch.tensor([1.234]),
        "hue": torch.tensor([0.0314]),
        "order": torch.tensor([[1, 0, 3, 2]]),
        "batch_prob": torch.tensor([True]),
    }
    assert caption(ColorJitter(), drawn) == [
        "brightness 0.76",
        "contrast 1.00",
        "saturation 1.23",
        "hue +0.031",
        "order CBHS",
    ]


def test_blur_is_said_by_its_sigma_and_grey_by_yes_and_no():
    yes, no = {"batch_prob": torch.tensor([True])}, {"batch_prob": torch.tensor([False])}
    assert caption(GaussianBlur(), {"sigma": torch.tensor([1.239])} | yes) == ["sigma 1.24"]
    assert caption(RandomGrayscale(), yes) == ["grey yes"]
    assert caption(RandomGrayscale(), no) == ["grey no"]


@pytest.mark.parametrize("stage", [ColorJitter(p=0.0), GaussianBlur(0.0), Sobel(0.0)], ids=kind)
def test_a_stage_that_leaves_the_image_is_said_not_to_be_applied(stage):
    drawn = stage.draw(some_keys(1), torch.Size([1, 3, 40, 40]))
    assert not applies(drawn)
    assert caption(stage, drawn) == ["not applied"]


def test_a_stage_that_draws_nothing_else_is_said_to_be_applied():
    assert caption(Sobel(), Sobel().draw(some_keys(1), torch.Size([1, 3, 40, 40]))) == ["applied"]


def test_numbers_of_unknown_stages_are_said_by_name():
    stage = KorniaStage(kornia.augmentation.RandomRotation(30.0))
    drawn = {"degrees": torch.tensor([12.345]), "corners": torch.arange(8.0).reshape(1, 4, 2)}
    assert stage.label == "RandomRotation"
    assert caption(stage, drawn) == ["corners 0 1 ..", "degrees 12.3"]
    assert caption(stage, {name: torch.ones(1) for name in "abcdefg"}) == ["a 1", "b 1", "c 1", "d 1", "and 3 more"]


def test_names_are_broken_before_capitals():
    assert wrap("RandomResizedCropFlip", 21) == ["RandomResizedCropFlip"]
    assert wrap("RandomResizedCropFlip", 16) == ["RandomResized", "CropFlip"]
    assert wrap("RandomRGBShift", 10) == ["RandomRGB", "Shift"]
    assert wrap("view 1", 16) == ["view 1"]


def test_lines_that_are_too_long_lose_whole_words():
    assert shorten("degrees 12.3", 12) == "degrees 12.3"
    assert shorten("end_points 6.16 0.65 ..", 20) == "end_points 6.16 .."
    assert shorten("a_very_long_parameter", 16) == "a_very_long_pa.."


def test_every_character_looks_different():
    characters = [chr(code) for code in range(33, 127) if chr(code) not in '!"#$&;<>@\\^`{|}~']
    drawings = {tuple(text_ink(character, scale=1).flatten().tolist()) for character in characters}
    assert len(drawings) == len(characters) == 78
    assert torch.equal(text_ink("é", scale=1), text_ink("?", scale=1))


# The file


def test_the_written_file_holds_the_picture(tmp_path):
    file = tmp_path / "seen.png"
    picture = preview(images(), SimCLRAugment(32), keys=some_keys(), path=file)
    with Image.open(file) as image:
        assert image.mode == "RGB"
        assert torch.equal(torch.from_numpy(np.array(image)).permute(2, 0, 1), picture)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 300), (17, 29)])
def test_png_files_of_any_shape_are_read_by_others(tmp_path, shape):
    image = images(1, h=shape[0], w=shape[1])[0]
    write_png(tmp_path / "a.png", image)
    with Image.open(tmp_path / "a.png") as read:
        assert torch.equal(torch.from_numpy(np.array(read)).permute(2, 0, 1), image)


# What is refused


def refusal(error: type[Exception], *arguments, **named) -> str:
    with pytest.raises(error) as raised:
        preview(*arguments, **named)
    return str(raised.value)


def test_bad_arguments_are_refused_by_name():
    augment = SimCLRAugment(32)
    assert refusal(ValueError, images(0), augment) == "`images` must hold at least one image, got none."
    assert "`images` must have shape (n, c, h, w), got (3, 40, 44)" in refusal(ValueError, images()[0], augment)
    assert "`images` must lie in [0, 1]" in refusal(ValueError, images().float(), augment)
    assert "`augment` must be an augmentation" in refusal(TypeError, images(), lambda batch, keys: batch)
    assert refusal(TypeError, images(), "simclr").endswith("got str.")
    assert "`keys` must have shape (2,)" in refusal(ValueError, images(), augment, keys=some_keys(3))
    assert refusal(ValueError, images(), augment, rows=0) == "`rows` must be at least 1, got 0."
    assert refusal(ValueError, images(), augment, size=95).startswith("`size` must be at least 96 pixels")
    assert refusal(ValueError, images(), augment, path="seen.jpg") == "`path` must end in .png, got 'seen.jpg'."


def test_a_file_that_cannot_be_written_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        preview(images(), SimCLRAugment(32), path=tmp_path / "nowhere" / "seen.png")


class Pair(nn.Module):
    def forward(self, batch: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        return batch, batch


def test_a_module_that_returns_no_images_is_refused():
    assert refusal(TypeError, images(), Pair()) == "Pair must return images (n, c, h, w) to be shown, got tuple."


# The command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    for number, name in enumerate(["b.png", "a.jpg", "deeper/c.PNG"]):
        pixels = images(3, h=40 + number, w=50)[number].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    return tmp_path / "in"


def refused(capsys, *arguments: object) -> str:
    """The one line that the command says when it fails."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    [line] = said.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_the_command_draws_what_the_function_draws(folder, tmp_path, capsys):
    out = tmp_path / "out.png"
    arguments = [folder / "b.png", "--out", out, "--size", 32, "--seed", 7, "--epoch", 2, "--strength", 0.5]
    assert main([str(argument) for argument in arguments]) == 0
    keys = sample_keys(torch.arange(1), seed=7, epoch=2)
    expected = preview(images(3, h=40, w=50)[:1], SimCLRAugment(32, strength=0.5), keys=keys)
    with Image.open(out) as image:
        assert torch.equal(torch.from_numpy(np.array(image)).permute(2, 0, 1), expected)
        assert capsys.readouterr().out == f"{out}: 1 of 1 images, {image.width} x {image.height} pixels\n"


@pytest.mark.parametrize("recipe", ["byol", "linear-eval"])
def test_the_command_draws_the_first_images_of_a_folder(folder, tmp_path, capsys, recipe):
    out = tmp_path / "out.png"
    assert main([str(folder), "--out", str(out), "--size", "32", "--recipe", recipe, "--rows", "2"]) == 0
    assert re.fullmatch(rf"{re.escape(str(out))}: 2 of 3 images, \d+ x \d+ pixels\n", capsys.readouterr().out)


def test_folders_are_searched_in_order_of_their_names(folder):
    found = [folder / "a.jpg", folder / "b.png", folder / "deeper" / "c.PNG"]
    assert find_images([folder]) == found
    assert find_images([folder / "b.png", folder / "deeper"]) == found[1:]


def test_the_command_names_what_it_cannot_read(folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes((folder / "b.png").read_bytes()[:200])
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    out = ["--out", tmp_path / "out.png"]
    assert refused(capsys, tmp_path / "none.jpg", *out) == f"error: {tmp_path / 'none.jpg'} does not exist."
    assert f"{tmp_path / 'empty'} holds no image" in refused(capsys, tmp_path / "empty", *out)
    for unreadable in (tmp_path / "broken.png", tmp_path / "dot.png", folder / "notes.txt"):
        assert f"{unreadable} cannot be read as an image" in refused(capsys, unreadable, *out)
    assert not (tmp_path / "out.png").exists()


def test_the_command_refuses_bad_options(folder, tmp_path, capsys):
    out = ["--out", tmp_path / "out.png"]
    assert "`rows` must be at least 1, got 0" in refused(capsys, folder, *out, "--rows", 0)
    assert "`rows` must be at least 1, got -2" in refused(capsys, folder, *out, "--rows", -2)
    assert "`size` must be at least 8 pixels, got 4" in refused(capsys, folder, *out, "--size", 4)
    assert "`seed` must be in [0, 2**63), got -1" in refused(capsys, folder, *out, "--seed", -1)
    assert "`path` must end in .png" in refused(capsys, folder, "--out", tmp_path / "out.jpg")
    assert "No such file or directory" in refused(capsys, folder, "--out", tmp_path / "nowhere" / "out.png")
    strength = refused(capsys, folder, *out, "--recipe", "byol", "--strength", 2)
    assert strength == "error: `--strength` belongs to the recipe simclr, got 2.0 with byol."


def test_the_command_runs_as_a_module_without_a_warning(folder, tmp_path):
    out = tmp_path / "out.png"
    command = [sys.executable, "-W", "error", "-m", "cl_augment.preview", folder, "--out", out, "--size", "32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{out}: 3 of 3 images")
    assert out.exists()


def test_the_file_of_the_command_cannot_take_the_place_of_the_function():
    with pytest.raises(ImportError, match=r"is a command, `python -m cl_augment.preview`"):
        __import__("cl_augment.preview")
    assert cl_augment.preview is preview
