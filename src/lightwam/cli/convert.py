"""`lightwam convert`: demonstrations that others published, as a dataset of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lightwam.cli.options import Flat, Names, kind_named
from lightwam.config.schema import ConvertConfig

KINDS = ("libero",)
USAGE = """usage: lightwam convert libero SOURCE OUT [OPTIONS]   LIBERO's HDF5 files, or a LeRobot dataset of LIBERO

lightwam convert libero --help lists the options."""


@dataclass(frozen=True)
class LiberoOptions:
    """Convert demonstrations of LIBERO into a LeRobot v3.0 dataset, preprocessed as in the paper.

    Goes on where it stopped. In OUT: cameras agentview and wrist, upright; gripper 1 open and 0 closed; no steps that
    do nothing; 20 steps a second.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """one *_demo.hdf5, a folder of them (a suite), a folder of suites, or a LeRobot dataset (v2.0, v2.1, v3.0)"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """the new dataset's directory; one that is begun already is gone on with"""
    names: Names = ()
    config: Annotated[ConvertConfig, Flat] = field(default_factory=ConvertConfig)


def run(arguments: Sequence[str]) -> None:
    """`lightwam convert libero SOURCE OUT [OPTIONS]`."""
    if (named := kind_named(arguments, KINDS, USAGE, "cannot convert that")) is None:
        return
    _, rest = named
    options = tyro.cli(LiberoOptions, args=rest, prog="lightwam convert libero")
    from lightwam.data.lerobot.features import parse_names
    from lightwam.data.libero.convert import convert

    done = convert(options.source, options.out, options.config, names=parse_names(options.names))
    print(
        f"{done.root}: {done.episodes} episodes, {done.frames} frames; {done.no_ops} no-op steps removed, "
        f"{done.skipped} demonstrations skipped; {done.new_episodes} of the episodes are new"
    )
