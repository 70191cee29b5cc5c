"""Names on the Hugging Face hub, and local folders in their stead."""

from pathlib import Path


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
