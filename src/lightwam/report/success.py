"""What came of the run: the sentence on top, success by task, the rollouts, the exchanged sentences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightwam.report.charts import Bar, interval_bars
from lightwam.report.evidence import Episode, Evidence, Score
from lightwam.report.formatting import THIN, counted, duration, escape, millions, percent, simulator
from lightwam.report.html import (
    eval_command,
    figure,
    image,
    missing,
    note,
    pairs,
    report_command,
    section,
    table,
    train_command,
)
from lightwam.report.images import Film, film

FILM_BYTES = 3_000_000
"""videos up to this many bytes in all go into the page; base64 makes them a third larger"""


def heading(evidence: Evidence) -> str:
    """The page's title in one sentence, and the numbers that stand behind it."""
    recipe, log, result = evidence.recipe, evidence.log, evidence.result
    demos = evidence.demonstrations
    if demos is None and not log:
        demos = sum(recipe.collect.demos(task) for task in recipe.sim.tasks)  # as the recipe has it
    size = f"A {millions(evidence.parameters)}-parameter Light-WAM" if evidence.parameters else "A Light-WAM"
    trained = (
        f"{size} trained on {'demonstrations' if demos is None else counted(demos, 'demonstration')} of "
        f"{counted(len(recipe.sim.tasks), f'{simulator(recipe.sim.name)} task')}"
    )
    wall = f" {duration(evidence.wall_seconds['total'])}" if evidence.wall_seconds else ""
    facts = []
    if result is None:
        text = f"{trained} has not been evaluated yet" if log else trained.replace(" trained ", " to be trained ")
    else:
        score = result.score
        text = (
            f"{trained} succeeds in {score.successes} of {score.trials} episodes it never saw: "
            f"{percent(score.rate)} ({_interval(score)})"
        )
        facts.append(("Success", f"{percent(score.rate)} <small>{_interval(score)}</small>"))
    if wall:
        text += f", in{wall} of wall time"
        facts.append(("Wall time", wall))
    if evidence.parameters:
        facts.append(("Parameters", millions(evidence.parameters)))
    if demos is not None:
        facts.append(("Demonstrations", f"{demos:,}"))
    if log:
        facts.append(("Training steps", f"{log.columns['step'][-1]:,.0f}"))
    name = f'<p class="eyebrow">lightwam <span>run</span> {escape(evidence.run.resolve().name)}</p>'
    return f"<header>{name}<h1>{text}.</h1>{pairs(facts, 'facts')}</header>"


def success(evidence: Evidence) -> str:
    """Success by task with Wilson intervals, as bars and as a table."""
    result, title = evidence.result, "Success by task"
    if result is None:
        done, planned = len(evidence.episodes), evidence.planned
        text = f"The evaluation is not finished: {done} of {planned} episodes are done." if done else (
            "The policy has not been run in closed loop yet."
        )  # fmt: skip
        return section("success", title, missing(text, eval_command(evidence.run)))
    bars = [_bar(item.task, item.score) for item in result.tasks]
    bars.append(_bar("all tasks", result.score, "bar total"))
    charts = "".join(
        f'<div class="{kind}">{interval_bars(bars, "Success by task with 95 % intervals", width)}</div>'
        for kind, width in (("for-wide", 760), ("for-narrow", 350))
    )
    rows = [
        [
            escape(i.task),
            f"&ldquo;{escape(i.instruction)}&rdquo;",
            _count(i.score),
            percent(i.score.rate),
            _range(i.score),
        ]
        for i in result.tasks
    ]
    rows.append(["all tasks", "", _count(result.score), percent(result.score.rate), _range(result.score)])
    numbers = table(
        "Closed-loop success on held-out seeds", ["Task", "Instruction", "Successes", "Rate", "95&#8239;% interval"],
        rows, (2, 3, 4), foot=1,
    )  # fmt: skip
    lead = (
        f"{counted(result.score.trials, 'episode')} on seeds from {result.first_seed:,} up, none of them "
        f"used for training. An episode is a success when the task is solved at some moment within "
        f"{counted(result.max_steps, 'control step')}. Lines are Wilson intervals."
    )
    caption = "Share of successful episodes, with 95&#8239;% intervals."
    warnings = "".join(note(f"<strong>Warning</strong> {escape(line)}") for line in result.warnings)
    return section("success", title, warnings, figure(charts, caption), numbers, lead=lead)


def rollouts(evidence: Evidence) -> str:
    """The recorded episodes, successes and failures, by task."""
    title, wanted = "Rollouts", [episode for episode in evidence.episodes if episode.video]
    if not wanted:
        return section("rollouts", title, missing("No episode has been recorded.", eval_command(evidence.run)))
    films = _films(wanted)
    order = {task: i for i, task in enumerate(evidence.recipe.sim.tasks)}
    blocks = []
    for task in sorted({episode.task for episode in wanted}, key=lambda name: (order.get(name, len(order)), name)):
        clips = "".join(_clip(evidence.run, episode, films) for episode in wanted if episode.task == task)
        ran = [episode.success for episode in evidence.episodes if episode.task == task]
        count = f"{sum(ran)} of {len(ran)} succeeded"
        blocks.append(
            f'<article><h3>{escape(task)} <small>{count}</small></h3><div class="clips">{clips}</div></article>'
        )
    failures = sum(not episode.success for episode in wanted)
    shown = f"{counted(len(wanted), 'episode')} as the policy drove them, {counted(failures, 'failure')} among them."
    torn = (
        note("The last line of <code>episodes.jsonl</code> was cut off and is left out.")
        if evidence.episodes_torn
        else ""
    )
    return section("rollouts", title, torn, f'<div class="tasks">{"".join(blocks)}</div>', lead=shown)


def _films(episodes: list[Episode]) -> Mapping[Path, Film]:
    """The videos that fit into the page, a task's first ones first so that every task has some."""
    seen: dict[str, int] = {}
    ranked = []
    for i, episode in enumerate(episodes):
        seen[episode.task] = seen.get(episode.task, 0) + 1
        ranked.append((seen[episode.task], i, episode))
    films: dict[Path, Film] = {}
    for _, _, episode in sorted(ranked, key=lambda item: item[:2]):
        assert episode.video is not None
        if not episode.video.is_file():
            continue
        if sum(film.num_bytes for film in films.values()) + episode.video.stat().st_size <= FILM_BYTES:
            films[episode.video] = film(episode.video)
    return films


def _clip(run: Path, episode: Episode, films: Mapping[Path, Film]) -> str:
    assert episode.video is not None
    badge = '<b class="good">&#10003; success</b>' if episode.success else '<b class="bad">&#10007; failure</b>'
    if not episode.success:
        when = f"not solved in {counted(episode.steps, 'step')}"
    elif episode.steps_to_success is None:
        when = counted(episode.steps, "step")
    else:
        when = f"solved at step {episode.steps_to_success}"
    said = f"{episode.task}, seed {episode.seed}: {'success' if episode.success else 'failure'}, {when}"
    caption = f"{badge} <span>{when}</span> <span>seed {episode.seed}</span>"
    if episode.video not in films:
        name = escape(episode.video.relative_to(run))
        if episode.video.is_file():
            gone = f'Left out to keep this page small: <a href="{name}">{name}</a>'
        else:
            gone = f"<code>{name}</code> is not in the run any more."
        return figure(f'<p class="gone">{gone}</p>', caption, "clip")
    film = films[episode.video]
    size = f'width="{film.width}" height="{film.height}"'
    video = (
        f'<video {size} src="{film.uri}" poster="{film.poster}" autoplay muted loop playsinline controls '
        f'aria-label="{escape(said)}"></video>'
    )
    strip = image(film.strip, f"{said}; its first, middle and last frame", 3 * film.width, film.height, "strip")
    return figure(video + strip, caption, "clip")


def swap(evidence: Evidence) -> str:
    """Does it read the instruction: success with the right sentence and with another task's."""
    title, found = "Exchanged sentences", evidence.swap
    if found is None:
        text = "Nobody has told the policy the wrong sentences yet."
        return section("swap", title, missing(text, report_command(evidence.run, "swap")))
    bars = [_bar("right sentences", found.right), _bar("exchanged", found.swapped, "bar other")]
    charts = "".join(
        f'<div class="{kind}">{interval_bars(bars, "Success with right and exchanged sentences", width)}</div>'
        for kind, width in (("for-wide", 760), ("for-narrow", 350))
    )
    told = any(item.swapped_instruction for item in found.tasks)
    heads = ["Task", *(["Told instead"] if told else []), "Right sentence", "Exchanged"]
    rows = [
        [
            escape(i.task),
            *([f"&ldquo;{escape(i.swapped_instruction or '')}&rdquo;"] if told else []),
            _count(i.right),
            _count(i.swapped),
        ]
        for i in found.tasks
    ]
    rows.append(["all tasks", *([""] if told else []), _count(found.right), _count(found.swapped)])
    caption = "Successes at the task that the scene was set up for"
    numbers = table("By task", heads, rows, (len(heads) - 2, len(heads) - 1), foot=1)
    return section(
        "swap",
        title,
        figure(charts, caption + ", with 95&#8239;% intervals."),
        numbers,
        lead=_verdict(found.right, found.swapped),
    )


def _verdict(right: Score, swapped: Score) -> str:
    fell = f"from {percent(right.rate)} ({_count(right)}) to {percent(swapped.rate)} ({_count(swapped)})"
    if swapped.interval[1] < right.interval[0]:
        return (
            f"Each scene was run again with another task's sentence. Success at the scene's own task falls {fell}: "
            "the policy does read the instruction, and does not merely recognise the scene."
        )
    return (
        f"Each scene was run again with another task's sentence. Success at the scene's own task goes {fell}. The "
        "intervals overlap, so this run does not show that the policy reads the instruction: it may act on the picture "
        "alone."
    )


def unfinished(evidence: Evidence) -> str:
    """A remark when training is not there or not at its end; else nothing."""
    planned, command = evidence.recipe.train.steps, train_command(evidence.recipe.name, evidence.run)
    if evidence.log is None:
        return missing("This run has not been trained yet: there is no <code>log.jsonl</code>.", command)
    reached = int(evidence.log.columns["step"][-1])
    if reached < planned:
        return missing(f"Training is at step {reached:,} of {planned:,}.", command).replace(
            "makes it", "goes on with it"
        )
    return ""


def _bar(label: str, score: Score, kind: str = "bar") -> Bar:
    return Bar(label, score.rate, *score.interval, count=_count(score), kind=kind)


def _count(score: Score) -> str:
    return f"{score.successes}/{score.trials}"


def _range(score: Score) -> str:
    low, high = (f"{100 * end:.0f}" for end in score.interval)
    return f"{low}&ndash;{high}{THIN}%"


def _interval(score: Score) -> str:
    low, high = (f"{100 * end:.0f}" for end in score.interval)
    return f"95{THIN}%\u00a0interval {low}\u00a0to\u00a0{high}{THIN}%"
