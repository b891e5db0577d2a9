"""CelebA, in its own format on disk: aligned faces with 40 attributes, of which one is the class to be learned.

    img_align_celeba/NNNNNN.jpg
    list_attr_celeba.txt       a count, the attributes' names, then a file's name and 1 or -1 for each
    identity_CelebA.txt        a file's name and whose face it is, which is the patient; where it is there
    list_eval_partition.txt    a file's name and 0, 1 or 2: train, validation or test; where it is there

References:
    Liu, Luo, Wang, Tang: Deep learning face attributes in the wild, arXiv 1411.7766.
"""

from pathlib import Path

from cadp_fl.config import DataConfig
from cadp_fl.data.files import FileRecord, source_of_files
from cadp_fl.data.imagefolder import decode_image
from cadp_fl.data.images import printable
from cadp_fl.data.schema import MAX_ATTRIBUTES, Source
from cadp_fl.errors import ConfigError, DataError

__all__ = ["read_celeba"]

ATTRIBUTES, IDENTITIES, PARTITION = "list_attr_celeba.txt", "identity_CelebA.txt", "list_eval_partition.txt"
IMAGES = "img_align_celeba"
MAX_BYTES = 1 << 28
_SPLIT = {"0": "train", "1": "validation", "2": "test"}


def read_celeba(config: DataConfig) -> Source:
    """Return the faces of the folder `data.path`; `data.label` names the attribute that is the class.

    Raises:
        ConfigError: no attribute is the class, or none of that name.
        DataError: files are missing or cannot be used.
    """
    assert config.path is not None, "check_source asks for it"
    lines = _lines(config.path / ATTRIBUTES)
    if len(lines) < 3 or not 2 <= len(lines[1]) <= MAX_ATTRIBUTES:
        raise DataError(
            f"{ATTRIBUTES} has a count, then the attributes' names, then a line a file. That in "
            f"'{printable(config.path)}' has not; get the file again."
        )
    names = tuple(lines[1])
    if config.label not in names:
        raise ConfigError(
            f"data.label names the attribute that is the class to be learned: {', '.join(names[:6])}, ... Found "
            f"{config.label!r}; give one of them, such as Smiling."
        )
    column = names.index(config.label)
    who, where = (
        {line[0]: line[1] for line in _lines(config.path / each) if len(line) > 1}
        if (config.path / each).is_file()
        else {}
        for each in (IDENTITIES, PARTITION)
    )
    records = []
    for number, (file, *values) in enumerate(lines[2:], start=3):
        if len(values) != len(names) or not set(values) <= {"1", "-1"} or "/" in file or "\\" in file or file == "..":
            raise DataError(
                f"A line of {ATTRIBUTES} is a file's name, and 1 or -1 for each of {len(names)} attributes. Line "
                f"{number} is not; get the file again."
            )
        attributes = tuple(int(value == "1") for value in values)
        label = config.label if attributes[column] else f"not {config.label}"
        records.append(
            FileRecord(
                config.path / IMAGES / file,
                file,
                label,
                who.get(file),
                None,
                _SPLIT.get(where.get(file, "")),
                None,
                attributes,
            )
        )
    classes = config.classes or (f"not {config.label}", config.label)
    config = config.model_copy(update={"classes": classes, "channels": config.channels or 3})
    return source_of_files(records, decode_image, config, name="celeba", attributes=names)


def _lines(path: Path) -> list[list[str]]:
    """Return the words of every line of a file that are not empty.

    Raises:
        DataError: it is missing, too large, or no text.
    """
    if not path.is_file() or path.is_symlink():
        raise DataError(
            f"CelebA is a folder of {IMAGES}/ and {ATTRIBUTES}. There is no '{path.name}' in "
            f"'{printable(path.parent)}'; put it there, as the data set's page has it."
        )
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"'{printable(path)}' is larger than such a file can be; get it again.")
    try:
        return [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise DataError(f"A list of CelebA is text. '{printable(path)}' is not; get it again.") from error
