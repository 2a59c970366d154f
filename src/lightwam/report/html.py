"""The few HTML blocks that every section is made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightwam.report.formatting import escape


def section(name: str, title: str, *blocks: str, lead: str = "") -> str:
    """A section of the page; `lead` is its first paragraph, as HTML."""
    first = f'<p class="lead">{lead}</p>' if lead else ""
    head = f'<h2 id="{name}-title">{title}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{head}{first}{"".join(blocks)}</section>'


def missing(what: str, command: str) -> str:
    """A part that the run lacks, with the command that makes it."""
    return f'<p class="missing">{what} <span class="makes">This makes it:</span> <code>{escape(command)}</code></p>'


def note(text: str) -> str:
    """A remark that a reader should not miss; `text` is HTML."""
    return f'<p class="note">{text}</p>'


def figure(content: str, caption: str, kind: str = "") -> str:
    """Something to look at with its caption, both HTML."""
    css = f' class="{kind}"' if kind else ""
    return f"<figure{css}>{content}<figcaption>{caption}</figcaption></figure>"


def table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int], foot: int = 0
) -> str:
    """A table of HTML cells; columns in `numeric` are right-aligned, the first column heads its row, the last `foot`
    rows are totals. Every cell knows its column's head, which a narrow screen shows beside it."""

    def row(cells: Sequence[str]) -> str:
        out = [f'<th scope="row">{cells[0]}</th>']
        for i, cell in enumerate(cells[1:], 1):
            kind = ' class="number"' if i in numeric else ""
            out.append(f'<td{kind} data-head="{heads[i]}">{cell}</td>')
        return f"<tr>{''.join(out)}</tr>"

    number = ' class="number"'
    head = "".join(f'<th scope="col"{number if i in numeric else ""}>{text}</th>' for i, text in enumerate(heads))
    body, totals = rows[: len(rows) - foot], rows[len(rows) - foot :]
    end = f"<tfoot>{''.join(map(row, totals))}</tfoot>" if totals else ""
    return (
        f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(map(row, body))}</tbody>{end}</table>"
    )


def pairs(rows: Sequence[tuple[str, str]], kind: str) -> str:
    """Terms with their values, both HTML."""
    return f'<dl class="{kind}">{"".join(f"<div><dt>{term}</dt><dd>{value}</dd></div>" for term, value in rows)}</dl>'


def image(uri: str, alt: str, width: int, height: int, kind: str = "") -> str:
    """A picture with its size, so that nothing jumps while the page loads."""
    css = f' class="{kind}"' if kind else ""
    return f'<img{css} src="{uri}" alt="{escape(alt)}" width="{width}" height="{height}">'


def train_command(name: str, run: Path) -> str:
    """How the run is trained, or goes on."""
    return f"lightwam train {name} --run {run}"


def demo_command(name: str, run: Path) -> str:
    """How all parts of the run are made, those that are there already left as they are."""
    return f"lightwam demo {name} --run {run}"


def report_command(run: Path, option: str) -> str:
    """How a part of the report is recorded, where `lightwam demo` has not done it."""
    return f"lightwam report {run} --{option}"


def eval_command(run: Path) -> str:
    """How the run is evaluated, or goes on."""
    return f"lightwam eval {run}"
