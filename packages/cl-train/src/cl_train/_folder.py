"""Folders of image files, with the class folders of ImageNet or without labels."""

from pathlib import Path

import torch
from torch import Tensor

from cl_train._datasets import ImageDataset
from cl_train._decode import decode
from cl_train._errors import InputError
from cl_train._image_files import check_headers, find_images


class FolderDataset(ImageDataset):
    """Image files in one folder per class, `root/<class>/.../<image>`, or anywhere in `root` without labels.

    Classes are in alphabetical order, files in that of their paths. Images are read as RGB, one by one, and keep their
    sizes; a camera's orientation (EXIF) is not applied, as by torchvision's `ImageFolder`. Links to folders are
    followed.

    Args:
        root: The folder of class folders or, without labels, of images.
        labelled: Whether the folders in `root` are classes.
        verify: Open every file and read its header at construction, about 0.1 ms each, so that what is no image is
            found before a run and not in the middle of it.

    Attributes:
        files: Paths of the images.

    Raises:
        InputError: The folder is missing or has no class folders, one of them or, without labels, `root` has no images,
            or a file in it is no image; the message names it.
    """

    def __init__(self, root: str | Path, *, labelled: bool = True, verify: bool = True) -> None:
        self.root, self.images, self.labels, self.classes = Path(root), None, None, None
        self.files: list[str] = []
        if labelled:
            self._find_classes()
        else:
            if not self.root.is_dir():
                raise InputError(f"`root` must be a folder of images, there is no folder {self.root}.")
            self.files = find_images(self.root, role="`root`", seen=set())
            if not self.files:
                raise InputError(f"`root` must hold images, {self.root} holds none.")
        if verify:
            check_headers(self.files, role="a class folder" if labelled else "`root`")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def read(self, index: int) -> Tensor:
        """Image `index` as uint8 RGB, (3, h, w)."""
        return decode(self.files[index], name=self.files[index])

    def name(self, index: int) -> str:
        """Path of image `index`."""
        return self.files[index]

    def _find_classes(self) -> None:
        if not self.root.is_dir():
            raise InputError(f"`root` must be a folder of class folders, there is no folder {self.root}.")
        folders = sorted(path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not folders:
            raise InputError(
                f"`root` must be a folder of class folders, {self.root} holds no folders; "
                "`labelled=False` takes images without classes."
            )
        self.classes = [folder.name for folder in folders]
        labels: list[int] = []
        seen: set[tuple[int, int]] = set()
        for label, folder in enumerate(folders):
            found = find_images(folder, role="a class folder", seen=seen)
            if not found:
                raise InputError(f"every class folder must hold images, {folder} holds none.")
            self.files += found
            labels += [label] * len(found)
        self.labels = torch.tensor(labels)
