"""A study as one HTML file: text escaped, charts as pictures, no script, nothing fetched."""

from __future__ import annotations

from html import escape

import polars as pl

from debug.causal_visualization.notebook import image
from debug.errors import DebugError
from debug.report.contents import Chapter, Mean, _mean, chapters
from debug.tracking import LoggedRun

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #22222a;
       background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2rem } p { margin: 0.3rem 0 }
pre { background: #f3f3f6; padding: 0.7rem; white-space: pre-wrap; overflow-wrap: anywhere }
table { border-collapse: collapse; font-size: 0.9rem; display: block; overflow-x: auto }
th, td { text-align: left; padding: 0.2rem 0.8rem 0.2rem 0; border-bottom: 1px solid #ddd; overflow-wrap: anywhere }
img { display: block; margin: 0.8rem 0; max-width: 100% }
"""


def report(study: LoggedRun, mean_of: Mean = _mean) -> str:
    """The whole file."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{escape(study.name or study.run_id)}</title><style>{STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body(study, mean_of)}</body></html>'


def body(study: LoggedRun, mean_of: Mean = _mean) -> str:
    """What is on it; a notebook shows this of a run. A chapter that cannot be read says why, and the others stay."""
    started = f"{study.start_time:%Y-%m-%d %H:%M} UTC" if study.start_time else ""
    parts = [f"<h1>{escape(study.name or study.run_id)}</h1>", f"<p>{started}</p>"]
    for heading, make in chapters(study, mean_of).items():
        try:
            chapter = make()
            content = "" if chapter is None else _html(chapter)
        except DebugError as error:
            content = f"<p>This part cannot be read: {escape(str(error))}</p>"
        parts.append(f"<h2>{escape(heading)}</h2>{content}" if content else "")
    return "".join(parts)


def _html(chapter: Chapter) -> str:
    parts = [f"<p>{escape(line)}</p>" for line in chapter.text]
    parts += [image(chart) for chart in chapter.charts]
    if chapter.table is not None:
        parts.append(_table(chapter.table))
    return "".join(parts) + (f"<pre>{escape(chapter.code)}</pre>" if chapter.code else "")


def _table(frame: pl.DataFrame) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in frame.columns)
    rows = (
        "".join(f"<td>{'' if value is None else escape(str(value))}</td>" for value in row) for row in frame.iter_rows()
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"
