"""Folders of images without classes, and folders that are links."""

import os
import re

import pytest
from cl_train import FolderDataset, InputError
from PIL import Image


def save(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(path)


def refused(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


@pytest.fixture
def root(tmp_path):
    for name in ("b.png", "a/z.png", "a/deep/er/y.png", "c.png"):
        save(tmp_path / "data" / name)
    return tmp_path / "data"


def test_images_at_any_depth_are_found_in_the_order_of_their_paths(root):
    data = FolderDataset(root, labelled=False)
    assert data.files == [str(root / name) for name in ("a/deep/er/y.png", "a/z.png", "b.png", "c.png")]


def test_the_order_is_that_of_folders_and_not_of_letters(tmp_path):
    for name in ("a.b/x.png", "a/x.png"):  # "." comes before "/"
        save(tmp_path / name)
    assert FolderDataset(tmp_path, labelled=False).files == [str(tmp_path / "a/x.png"), str(tmp_path / "a.b/x.png")]


def test_without_classes_there_are_no_labels(root):
    data = FolderDataset(root, labelled=False)
    assert (data.labels, data.classes, data.images, len(data)) == (None, None, None, 4)


def test_the_name_of_an_image_is_its_path(root):
    assert FolderDataset(root, labelled=False).name(3) == str(root / "c.png")


def test_hidden_files_and_folders_are_ignored(root):
    for name in (".x.png", ".thumbnails/x.png"):
        save(root / name)
    assert len(FolderDataset(root, labelled=False)) == 4


def test_a_missing_folder_is_refused(tmp_path):
    with refused(f"`root` must be a folder of images, there is no folder {tmp_path / 'no'}."):
        FolderDataset(tmp_path / "no", labelled=False)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "empty" / "too").mkdir(parents=True)
    with refused(f"`root` must hold images, {tmp_path} holds none."):
        FolderDataset(tmp_path, labelled=False)


def test_a_text_file_among_images_is_refused(root):
    (root / "a" / "notes.txt").touch()
    with refused(f"every file in `root` must be an image, {root / 'a' / 'notes.txt'} has not the name of one."):
        FolderDataset(root, labelled=False)


def test_a_file_that_is_no_image_is_refused(root):
    (root / "a" / "x.png").write_text("no image")
    with refused(f"every file in `root` must be an image, {root / 'a' / 'x.png'} is none."):
        FolderDataset(root, labelled=False)


def test_a_folder_that_cannot_be_opened_is_refused(root, monkeypatch):
    scandir = os.scandir

    def guarded(path):  # tests may run as root, who can open everything
        if os.fspath(path) == str(root / "a" / "deep"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with refused(f"every folder of images must be readable, {root / 'a' / 'deep'}: Permission denied."):
        FolderDataset(root, labelled=False)


# Links


@pytest.mark.parametrize("labelled", [True, False])
def test_links_to_folders_are_followed(root, tmp_path, labelled):
    save(tmp_path / "elsewhere" / "x.png")
    (root / "a" / "link").symlink_to(tmp_path / "elsewhere")
    assert str(root / "a" / "link" / "x.png") in FolderDataset(root, labelled=labelled).files


def test_a_link_into_the_folder_itself_is_refused(root):
    (root / "a" / "link").symlink_to(root)
    message = f"every image must be there once, {root / 'a' / 'link'} is a link to a folder that is among them already."
    with refused(message):
        FolderDataset(root, labelled=False)


def test_two_classes_that_are_one_folder_are_refused(root):
    (root / "d").symlink_to(root / "a")
    with refused(f"every image must be there once, {root / 'd'} is a link to a folder that is among them already."):
        FolderDataset(root)


def test_a_link_to_a_file_that_is_gone_is_refused(root):
    (root / "x.png").symlink_to(root / "gone.png")
    with refused(f"every file in `root` must be an image, {root / 'x.png'} is none."):
        FolderDataset(root, labelled=False)
