"""Small real data sets that ship with the package, each with its licence: `sample:wordnet_senses`."""

from __future__ import annotations

from pathlib import Path

__all__ = ["sample_folder"]


def sample_folder(name: str) -> Path:
    """Find a packaged data set, such as "wordnet_senses".

    Raises:
        FileNotFoundError: there is none of that name; those that are there are named.
    """
    here = Path(__file__).parent
    found = sorted(folder.name for folder in here.iterdir() if (folder / "qrels").is_dir())
    if name not in found:
        raise FileNotFoundError(f"there is no packaged data set '{name}'; there is {', '.join(found)}.")
    return here / name
