"""``hardneg report RUN_FOLDER``: what the command line calls."""

from __future__ import annotations

import argparse

from hardneg.report.page import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hardneg report``."""
    parser.add_argument(
        "folder",
        help="folder of a run (with metrics.csv, negatives.jsonl, evaluation.json; thumbnails.json where things have "
        "pictures), or of several runs to compare",
    )
    parser.add_argument("--title", help="heading of the page; the folder's name if left out")
    parser.add_argument("--out", help="file to write; report.html in the folder if left out")


def run(args: argparse.Namespace) -> None:
    """Write the report and say where it is.

    Raises:
        FileNotFoundError, ValueError, ImportError: as `write_report`; each text stands alone.
    """
    print(write_report(args.folder, args.title, args.out))
