"""`lightwam view`: a dataset or a run in Rerun."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightwam.cli.options import DeviceOptions, NamesOptions, run_command


@dataclass(frozen=True, kw_only=True)
class ViewOptions(DeviceOptions, NamesOptions):
    """Show episodes in Rerun: cameras, state and action of every joint, the sentence.

    Of a run also the chunks that its policy predicts along them, what the model sees and what it imagines. Without a
    display the viewer is served to browsers of this machine.
    """

    save: Path | None = None
    """write the recording to this file (.rrd) and open nothing; `rerun FILE` opens it"""
    episodes: tuple[int, ...] = ()
    """numbers of episodes; by default the first of each sentence, of a run those that it held out"""
    dataset: Path | None = None
    """of a run: episodes of this dataset, not of its own"""
    step: int | None = None
    """of a run: the checkpoint; the newest by default"""
    imagine_steps: int = 20
    """of a run: Euler steps of an imagined future; 0 imagines none, which is faster"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam view DATASET|RUN [--save FILE.rrd] [--episodes N ...]`."""
    names = {"DATASET|RUN": "a dataset, also OWNER/NAME on the Hugging Face Hub, or a run directory"}
    (source,), options = run_command(ViewOptions, arguments, "view", names)
    from lightwam.data.lerobot.features import parse_names
    from lightwam.report.view import show, write_view

    with tempfile.TemporaryDirectory(prefix="lightwam-view-") as temporary:
        path = write_view(
            source,
            options.save or Path(temporary) / "view.rrd",
            episodes=options.episodes,
            dataset=options.dataset,
            names=parse_names(options.names),
            step=options.step,
            device=options.device,
            imagine_steps=options.imagine_steps,
        )
        if options.save is None:
            show(path)
        else:
            print(path)
