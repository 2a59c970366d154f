"""The whole page: one HTML file that asks nobody for anything."""

from __future__ import annotations

from importlib import resources

from lightwam.report import imagination as insight
from lightwam.report import success as outcome
from lightwam.report import training
from lightwam.report import watch as watched
from lightwam.report.evidence import Evidence
from lightwam.report.formatting import escape

# the browser itself then refuses every request that this page could make
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_PARTS = (
    ("success", "Success"),
    ("rollouts", "Rollouts"),
    ("imagination", "Futures"),
    ("attention", "Attention"),
    ("swap", "Sentences"),
    ("watch", "Watch"),
    ("curves", "Learning"),
    ("time", "Time"),
    ("reproduce", "Config"),
)

# without scripts the videos play and have their own controls; with them one button does for all
_SCRIPT = """
const films = [...document.querySelectorAll('video')];
if (films.length) {
  const button = document.createElement('button');
  let playing = !matchMedia('(prefers-reduced-motion: reduce)').matches;
  const show = () => {
    films.forEach(film => playing ? film.play().catch(() => film.controls = true) : film.pause());
    button.textContent = playing ? 'Pause all videos' : 'Play all videos';
  };
  button.onclick = () => { playing = !playing; show(); };
  films.forEach(film => { film.controls = false; film.onclick = () => film.paused ? film.play() : film.pause(); });
  document.querySelector('#rollouts .tasks').before(button);
  show();
}
addEventListener('beforeprint', () => document.querySelectorAll('details.settings').forEach(part => part.open = true));
"""


def page(evidence: Evidence) -> str:
    """The report as HTML."""
    links = "".join(f'<a href="#{name}">{text}</a>' for name, text in _PARTS)
    sections = [
        outcome.heading(evidence),
        f'<nav aria-label="Parts">{links}</nav>',
        outcome.unfinished(evidence),
        "<main>",
        outcome.success(evidence),
        outcome.rollouts(evidence),
        insight.imagination(evidence),
        insight.attention(evidence),
        outcome.swap(evidence),
        watched.watch(evidence.watch, evidence.run, evidence.recipe.sim.name),
        training.curves(evidence),
        training.times(evidence),
        training.reproduction(evidence),
        "</main>",
    ]
    style = resources.files("lightwam.report").joinpath("style.css").read_text(encoding="utf-8")
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="color-scheme" content="light dark">'
        f"<title>lightwam: run {escape(evidence.run.resolve().name)}</title><style>{style}</style>"
    )
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(sections)}'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )
