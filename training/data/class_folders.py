"""Images in one folder for each class. Links are followed, and files that are not used are reported."""

import logging
import os
from collections.abc import Iterator, Mapping

from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from rednet.training.data.problems import first_of, name_problem, raise_problems
from rednet.training.utils.distributed import is_main_process
from tqdm.auto import tqdm


SUFFIXES = {suffix for suffix, kind in PILImage.registered_extensions().items() if kind in PILImage.OPEN}
logger = logging.getLogger(__name__)


class ClassFolders:
    """Lists `folder`. Each folder in it is a class, which has all pictures at any depth below.

    Attributes:
        pictures: the sorted paths of each class.
        problems: errors: broken links, links to a parent folder, empty files, pictures without a class, and pictures
            with names that are not UTF-8.
        unused: files that are not pictures, and hidden files and folders.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self.pictures: dict[str, list[str]] = {}
        self.problems: list[str] = []
        self.unused: list[str] = []
        entries = tqdm(self._entries(folder), desc=folder, leave=False, delay=2, disable=not is_main_process())
        above = (os.path.realpath(folder),)
        for entry in entries:
            if entry.name[0] == ".":
                self.unused.append(entry.path)
            elif _is_folder(entry):
                self.pictures[entry.name] = list(self._below(entry.path, above))
            elif self._is_picture(entry):
                self.problems.append(f"{entry.path} is not in a folder, expected it in the folder of its class")

    def _below(self, folder: str, above: tuple[str, ...]) -> Iterator[str]:
        real = os.path.realpath(folder)
        if real in above:
            self.problems.append(f"{folder} is a link to {real}, which contains it")
            return
        for entry in self._entries(folder):
            if entry.name[0] == ".":
                self.unused.append(entry.path)
            elif _is_folder(entry):
                yield from self._below(entry.path, (*above, real))
            elif self._is_picture(entry):
                yield entry.path

    def _entries(self, folder: str) -> list[os.DirEntry]:
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.problems.append(f"{folder} cannot be read: {error.strerror}")
            return []

    def _is_picture(self, entry: os.DirEntry) -> bool:
        """Whether a file has the suffix of a picture. Records broken links, invalid names, empty files and other files."""
        if entry.is_symlink() and not os.path.exists(entry.path):
            self.problems.append(f"{entry.path} is a broken link to {os.readlink(entry.path)}")
            return False
        if os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
            self.unused.append(entry.path)
            return False
        if problem := name_problem(entry.path):
            self.problems.append(problem)
            return False
        if is_main_process() and entry.stat().st_size == 0:  # one process asks the disk
            self.problems.append(f"{entry.path} is empty, expected a picture")
        return True


def _is_folder(entry: os.DirEntry) -> bool:
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def read_class_folders(folders: Mapping[str, str]) -> dict[str, Dataset]:
    """Reads splits with the columns `image` and `label`.

    Args:
        folders: the folder of each split. The classes are the folders in the first one.

    Raises:
        ValueError: a class has no pictures or is not in the first folder, a link or a file is broken, or a picture is
            not in a class.
    """
    listings = {split: ClassFolders(folder) for split, folder in folders.items()}
    first = next(iter(listings.values()))
    problems = [problem for split in listings.values() for problem in split.problems]
    if not first.pictures:
        problems.append(f"{first.folder} has no folders, expected one for each class")
    problems += [f"{first.folder}/{name} has no pictures" for name, paths in first.pictures.items() if not paths]
    for split in listings.values():
        if unknown := sorted(split.pictures.keys() - first.pictures.keys()):
            problems.append(f"{split.folder} has classes {unknown}, {first.folder} {sorted(first.pictures)}")
    raise_problems(problems, " and ".join(dict.fromkeys(folders.values())))
    if is_main_process():
        for split in listings.values():
            _warn(split, first)
    names = list(first.pictures)
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    tables = {}
    for name, split in listings.items():
        rows = [(path, label) for label, class_ in enumerate(names) for path in split.pictures.get(class_, [])]
        columns = {"image": [path for path, _ in rows], "label": [label for _, label in rows]}
        tables[name] = Dataset.from_dict(columns, features)
    return tables


def _warn(split: ClassFolders, first: ClassFolders) -> None:
    notes = []
    if split.unused:
        notes.append(f"{len(split.unused)} are no pictures and are not used: {first_of(split.unused)}")
    if missing := [name for name in first.pictures if not split.pictures.get(name)]:
        notes.append(f"{len(missing)} classes have no pictures to evaluate on: {first_of(missing)}")
    if notes:
        logger.warning(f"{split.folder}: {'; '.join(notes)}")
