"""The sources of a recipe: datasets of which a share of every batch is drawn, and what each of them teaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest

import numpy as np
from jaxtyping import Bool, Int64

from lightwam.config.schema import CodecConfig, Recipe, SourceConfig
from lightwam.data.cache.base import Cache
from lightwam.data.cache.joined import JoinedCache
from lightwam.data.cache.resampled import ResampledCache
from lightwam.data.codec import Codec
from lightwam.data.facts import DatasetFacts
from lightwam.data.held_out import episode_sentences, episodes_in_use, held_out_episodes
from lightwam.data.ranges import RobotRanges
from lightwam.data.sampling import Part, Sampling
from lightwam.data.statistics import combine
from lightwam.errors import ConfigError, DatasetError
from lightwam.system.progress import Say
from lightwam.training.caches import DatasetCaches, DatasetSource, open_caches

CORRECTION_COLUMNS = ("intervention", "complementary_info.is_intervention")
"""columns that mark a person's corrections: ours, and that of LeRobot's human-in-the-loop recordings"""


@dataclass(frozen=True)
class TrainingSource:
    """A source of a recipe with its caches."""

    settings: SourceConfig
    caches: DatasetCaches

    @cached_property
    def sentences(self) -> dict[int, str]:
        """The episodes that are used, held-out ones included, and their instructions."""
        return episodes_in_use(episode_sentences(self.caches.data), self.settings)

    @cached_property
    def held_out(self) -> tuple[int, ...]:
        """The episodes that are never trained on; none of a source without actions, which have no error to measure."""
        chosen = self.caches.recipe.held_out
        if self.settings.actions == "none" and not self.settings.held_out:
            return ()
        return held_out_episodes(self.sentences, chosen.share, chosen.seed, self.settings.held_out)

    @property
    def trained(self) -> list[int]:
        """The episodes that are trained on."""
        return sorted(set(self.sentences) - set(self.held_out))

    @cached_property
    def taught(self) -> Bool[np.ndarray, " N"]:
        """The frames whose actions are learnt; DatasetError when corrections are not marked."""
        if self.settings.actions == "corrections":
            return self.caches.data.flag(CORRECTION_COLUMNS)
        return np.full(self.caches.data.num_frames, self.has_actions)

    @property
    def has_actions(self) -> bool:
        """Whether its actions are learnt, at least in part."""
        return self.settings.actions != "none"

    @property
    def is_whole(self) -> bool:
        """Whether all of its windows teach both losses."""
        whole = len(self.trained) == self.caches.data.num_episodes
        return whole and self.settings.actions == "all" and self.settings.video

    def check(self) -> None:
        """Raise what would prevent training on it, before anything is decoded.

        ConfigError for episodes, tasks or held-out episodes that it lacks; DatasetError when corrections are not
        marked, or nothing is left to train on.
        """
        start, trained = self.caches.data.episode_start, self.trained
        if not trained or not (
            self.settings.video or any(self.taught[slice(*start[i : i + 2])].any() for i in trained)
        ):
            raise self.is_empty()

    def is_empty(self) -> DatasetError:
        """Return the error for a source that has nothing to train on."""
        what, got = "a source must have something to train on", f"{len(self.held_out)} episodes held out"
        got += "" if self.settings.video else ", no step with a correction in the others"
        return DatasetError(what, where=self.caches.data.root, got=got)


@dataclass(frozen=True, eq=False)
class SourceCache:
    """A source's cache as it is joined with others: at the common rate, with the model's widths."""

    source: TrainingSource
    cache: Cache
    taught: Bool[np.ndarray, " N"]
    """the steps whose actions are learnt"""

    @property
    def steps(self) -> Int64[np.ndarray, " n"]:
        """The control steps of the episodes that are trained on."""
        spans = (range(*self.cache.episode_start[i : i + 2].tolist()) for i in self.source.trained)
        return np.concatenate([np.arange(0), *spans]).astype(np.int64)

    def windows(self, prefix: int) -> Int64[np.ndarray, " n"]:
        """Return the steps at which windows begin that teach something; DatasetError when there are none.

        `prefix`: the steps of a chunk that the action loss covers.
        """
        steps, cache = self.steps, self.cache
        if not self.source.settings.video:
            last = np.repeat(cache.episode_start[1:], np.diff(cache.episode_start))
            count = np.concatenate([[0], np.cumsum(self.taught)])
            steps = steps[(count[np.minimum(steps + prefix, last[steps])] - count[steps]) > 0]
        if not len(steps):
            raise self.source.is_empty()
        return steps


def open_sources(
    recipe: Recipe, wanted: Sequence[DatasetSource], say: Say = print, *, sentences: bool = True
) -> list[TrainingSource]:
    """Open the sources of a run (`DatasetSource.all_of`); nothing is decoded.

    Raises as `open_caches` and `TrainingSource.check`; ConfigError for cameras that do not fit a source; DatasetError
    when latents of a pretrained VAE would have to be resampled.
    """
    opened = []
    for asked in wanted:
        settings = asked.settings or SourceConfig(str(asked.path))
        own = replace(recipe, codec=source_codec(recipe.codec, settings))
        caches = open_caches(own, replace(asked, settings=settings), say, sentences=sentences)
        opened.append(TrainingSource(settings, caches))
    fps = common_fps(opened)
    for source in opened:
        data = source.caches.data
        if recipe.latents.pretrained and data.fps != fps:
            what, step = "sources of cached latents must have one rate", "record or convert it at that rate"
            raise DatasetError(what, where=data.root, got=f"{data.fps:g} fps", expected=f"{fps:g} fps", next_step=step)
        source.check()
    return opened


def source_codec(config: CodecConfig, source: SourceConfig) -> CodecConfig:
    """Return the codec with a source's names of cameras; the place of a camera that it lacks ("=NAME") stays black.

    ConfigError when a pair has another form, names no camera of the codec, or leaves the canvas without a picture.
    """
    known, cameras = {place.camera for place in config.places}, dict[str, str]()
    for pair in source.cameras:
        camera, equals, name = pair.partition("=")
        if not equals or name not in known or name in cameras:
            expected = f"CAMERA=NAME, or =NAME for one that it lacks, with each of {sorted(known)} at most once"
            raise ConfigError("a source's cameras must be pairs", where=source.path, got=pair, expected=expected)
        cameras[name] = camera
    places = [replace(place, camera=cameras.get(place.camera, place.camera)) for place in config.places]
    owners = {(place.camera, own.camera) for place, own in zip(config.places, places, strict=True) if own.camera}
    if not owners or len({camera for _, camera in owners}) < len(owners):
        what = "a source must give the codec's cameras at least one picture, and none twice"
        raise ConfigError(what, where=source.path, got=source.cameras)
    return replace(config, places=tuple(place for place in places if place.camera))


def common_fps(sources: Sequence[TrainingSource]) -> float:
    """Return the rate of the run: that of the first source with actions."""
    return next(source.caches.data.fps for source in sources if source.has_actions)


def open_source_caches(recipe: Recipe, sources: Sequence[TrainingSource], say: Say) -> list[SourceCache]:
    """Open the sources' caches, decoding what is missing; raises as `DatasetCaches.open` and for a missing column."""
    fps = common_fps(sources)
    return [_at_rate(recipe, source, source.caches.open(say), fps) for source in sources]


def _at_rate(recipe: Recipe, source: TrainingSource, cache: Cache, fps: float) -> SourceCache:
    taught = source.taught
    if not source.has_actions:
        zeros = np.zeros((cache.num_steps, recipe.model.state_dim + recipe.model.action_dim), np.float32)
        cache = replace(cache, state=zeros[:, : recipe.model.state_dim], action=zeros[:, recipe.model.state_dim :])
    elif not recipe.model.state_dim:
        cache = replace(cache, state=cache.state[:, :0])
    if cache.fps != fps:
        resampled = ResampledCache.of(cache, fps, recipe.codec.delta_action_dims)
        cache, taught = resampled, taught[resampled.timeline.previous]
    return SourceCache(source, cache, taught)


def join_caches(recipe: Recipe, opened: Sequence[SourceCache]) -> Cache:
    """Return the caches as one, which says what is drawn of each; DatasetError when nothing is left of one."""
    if len(opened) == 1 and opened[0].source.is_whole:
        return opened[0].cache
    parts, held_out, first, episodes = [], list[int](), 0, 0
    for each in opened:
        windows = each.windows(recipe.model.supervised_prefix)
        parts.append(Part(first + windows, each.source.settings.weight))
        held_out += [episodes + episode for episode in each.source.held_out]
        first, episodes = first + each.cache.num_steps, episodes + each.cache.num_episodes
    drawn = Sampling(
        parts=tuple(parts),
        teaches_action=np.concatenate([each.taught for each in opened]),
        teaches_video=np.concatenate([np.full(len(each.taught), each.source.settings.video) for each in opened]),
        has_state=np.concatenate([np.full(len(each.taught), each.source.has_actions) for each in opened]),
        held_out=tuple(held_out),
    )
    return JoinedCache.join([each.cache for each in opened], drawn)


def fit_sources(recipe: Recipe, opened: Sequence[SourceCache]) -> Codec:
    """Return the recipe's codec with the statistics of all sources with actions, weighted as they are drawn.

    They are of the episodes that are trained on.
    """
    codecs, weights = [], []
    for each in opened:
        if each.source.has_actions:
            rows, lengths = each.steps, np.diff(each.cache.episode_start)[each.source.trained]
            state, action, starts = each.cache.state[rows], each.cache.action[rows], np.cumsum([0, *lengths])
            codecs.append(Codec.fit(recipe.codec, state, action, starts, recipe.model.horizon))
            weights.append(each.source.settings.weight)
    states, actions = ([getattr(codec, name) for codec in codecs] for name in ("state", "action"))
    relative = []
    for step in zip_longest(*(codec.relative for codec in codecs)):  # a source of short episodes lacks the last ones
        known = {number: stats for number, stats in enumerate(step) if stats is not None}
        relative.append(combine([*known.values()], [weights[number] for number in known]))
    return Codec(recipe.codec, combine(states, weights), combine(actions, weights), relative)


def source_facts(sources: Sequence[TrainingSource]) -> DatasetFacts:
    """Return the facts of the run: of the first source with actions, with the codec's names of its cameras.

    Sentences, ranges and numbers of episodes and frames are those of the episodes in use of all sources with actions.
    """
    own = [source for source in sources if source.has_actions]
    facts = [DatasetFacts.of(source.caches.data, source.sentences) for source in own]
    counts: dict[str, int] = {}
    for each in facts:
        for sentence, count in each.sentences.items():
            counts[sentence] = counts.get(sentence, 0) + count
    names = dict(pair.split("=", 1) for pair in own[0].settings.cameras)
    ranges = [(each.ranges, each.fps) for each in facts if each.ranges is not None]
    motions = own[0].caches.recipe.codec.delta_action_dims
    return replace(
        facts[0],
        cameras={names.get(camera, camera): size for camera, size in facts[0].cameras.items()},
        sentences=counts,
        num_episodes=sum(each.num_episodes for each in facts),
        num_frames=sum(each.num_frames for each in facts),
        ranges=RobotRanges.joined(ranges, facts[0].fps, motions) if len(ranges) > 1 else facts[0].ranges,
    )
