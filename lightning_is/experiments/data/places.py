"""Names on the Hugging Face hub, and local folders in their stead."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `datasets` takes three seconds to import
    from datasets import DatasetDict  # type: ignore[import-untyped]


def local_folder(path: str) -> Path | None:
    """Return the folder that is meant; None for a name on the hub.

    Raises:
        FileNotFoundError: If a folder is meant that does not exist.

    Example:
        >>> local_folder("ylecun/mnist") is None
        True
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise FileNotFoundError(
            f"`path` must be an existing folder or a name on the hub, got {path!r}, "
            f"and {folder.resolve()} does not exist. Paths count from the directory "
            f"you stand in: {Path.cwd()}."
        )
    return None


def data_set(path: str, subset: str | None, cure: str) -> "DatasetDict":
    """Open a data set by its name on the hub or its folder, or say what is wrong.

    Args:
        path: The name, or a folder that exists. What is on the hub is downloaded once
            a machine.
        subset: Configuration of a set that has several.
        cure: What else to give, to end messages with.

    Raises:
        FileNotFoundError: If there is no such set.
        ConnectionError: If the hub cannot be reached.
        ValueError: If the set has no such configuration, or cannot be read.
    """
    from datasets import load_dataset

    try:
        return load_dataset(path, subset)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            "`path` must be a data set on the hub, or hold one on this machine, got "
            f"{path!r}. {cure}"
        ) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"A data set that is not on this machine needs the network, got {path!r} "
            f"and no answer from the hub. {cure}"
        ) from error
    except ValueError as error:
        raise ValueError(
            "`path` must be a data set that can be read, and `subset` one of its "
            f"configurations where it has several, got {path!r} and subset={subset!r}, "
            f"of which `datasets` says: {' '.join(str(error).split())[:300]} Name "
            "another `subset=`, or choose another set."
        ) from error


def checkpoint_file(path: str, name: str) -> Path | None:
    """Return a file of a checkpoint, downloaded if need be; None if it has none such.

    Args:
        path: Of the checkpoint: its name on the hub, or a local folder.
        name: Of the file.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ConnectionError: If the hub cannot be reached.
    """
    folder = local_folder(path)
    if folder is not None:
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(path, name))
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise FileNotFoundError(
            f"`path` must be a checkpoint on the hub or a folder that holds one, got "
            f"{path!r}, which is neither. Check the spelling (`owner/name`, e.g. "
            "microsoft/resnet-50)."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"A checkpoint that is not on this machine needs the network, got {path!r} "
            "and no answer from the hub. Give a local folder; scripts/train.py "
            "experiment=pretrain makes one."
        ) from error
    except errors.EntryNotFoundError:
        return None
