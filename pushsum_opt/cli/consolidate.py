"""``pushsum consolidate``: one plain model out of a checkpoint of many ranks."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["HELP", "NAME", "add_arguments", "main"]

NAME = "consolidate"
HELP = "Average a checkpoint of many ranks into one model file for a plain PyTorch script."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="a directory of checkpoints, or one of them")
    parser.add_argument("output", type=Path, metavar="OUT", help="the file to write: model.load_state_dict() takes it")
    parser.epilog = "Needs no MPI. The average is exact: push weights and messages in flight are accounted for."


def main(args: argparse.Namespace) -> int:
    """Average, write the file, and say what is in it.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    import torch  # imported here, because the command's help does not need torch

    from ..checkpoint import consolidate
    from ..checkpoint.files import write_whole
    from ..errors import CheckpointError

    model = consolidate(args.directory)
    try:
        write_whole(args.output, lambda file: torch.save(model, file))
    except OSError as error:
        raise CheckpointError(f"{args.output}: cannot be written: {error}") from error
    elements = sum(value.numel() for value in model.values() if isinstance(value, torch.Tensor))
    print(f"{args.output}: {len(model)} tensors, {elements:,} elements")
    return 0
