"""Tables and figures to files: Markdown, CSV and LaTeX; PDF and PNG, with the caption as text beside them."""

from __future__ import annotations

import re
from math import floor, log10
from pathlib import Path

from kwslib.io import replacing
from paper.figure_style import save_figure

SPECIAL = re.compile(r"(?<!\w)_|_(?!\w)|[\\|*<`]")  # of Markdown; an underline within a word is harmless
WIDE = 50  # characters: a column with a longer cell is set as a paragraph
# Characters that not every LaTeX engine and font encoding prints.
SIGNS = str.maketrans({"±": r"$\pm$", "×": r"$\times$", "–": "--", "“": "``", "”": "''", "<": r"\textless{}",
                       ">": r"\textgreater{}", "µ": r"$\mu$", "Δ": r"$\Delta$"})  # fmt: skip


def markdown(df):
    """A DataFrame of text as a Markdown table."""

    def line(cells):
        return "| " + " | ".join(SPECIAL.sub(r"\\\g<0>", cell) for cell in cells) + " |"

    return "\n".join([line(df), line(["---"] * len(df.columns)), *map(line, df.values)])


def significant(value, digits=3):
    """A positive number with `digits` significant digits and without an exponent: "1,230", "110", "7.53", "0.0210"."""
    for _ in range(2):  # rounding may add a digit
        places = digits - 1 - floor(log10(abs(value))) if value else digits - 1
        value = round(value, places)
    return f"{value:,.{max(0, places)}f}"


def reached(value, most):
    """Whether a measured value keeps to an aim, in words."""
    return "reached" if value <= most else "not reached"


def captioned(df, caption):
    """A Markdown file's text: the caption, then the table."""
    return f"{caption}\n\n{markdown(df)}\n"


def latex(df, name, caption):
    """A DataFrame of text as a LaTeX table in booktabs style (packages booktabs and graphicx)."""
    wide = {column: df[column].str.len().max() > WIDE for column in df}
    align = "".join("p{70mm}" if wide[column] else "l" if i == 0 else "r" for i, column in enumerate(df))
    tabular = df.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    text = "\n".join(
        (
            r"\begin{table*}",
            r"\centering",
            rf"\caption{{{latex_text(caption)}}}",
            rf"\label{{tab:{name}}}",
            r"\resizebox{\textwidth}{!}{%",
            tabular.to_latex(hrules=True, column_format=align).rstrip() + "}",
            r"\end{table*}",
            "",
        )
    )
    return text.translate(SIGNS)


def latex_text(text):
    """`text` escaped as a cell of a LaTeX table is: pandas escapes cells, not captions."""
    from pandas import DataFrame

    cell = DataFrame([text]).style.hide(axis="index").hide(axis="columns").format(escape="latex")
    return cell.to_latex().splitlines()[1].removesuffix(r" \\")


def write_table(df, folder, name, caption):
    """Write <folder>/<name>.md, .csv and .tex."""
    for suffix, text in (
        ("md", captioned(df, caption)),
        ("tex", latex(df, name, caption)),
        ("csv", df.to_csv(index=False, lineterminator="\n")),
    ):
        write_text(Path(folder) / f"{name}.{suffix}", text)


def write_text(path, text):
    """Write a text file, atomically."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_report(tables, figures, results_folder, figures_folder=None):
    """Write name -> (DataFrame, caption) to `results_folder` and name -> (Figure, caption) to `figures_folder`.

    Returns a sentence that says what was written.
    """
    for name, (df, caption) in tables.items():
        write_table(df, results_folder, name, caption)
    for name, (figure, caption) in figures.items():
        save_figure(figure, figures_folder, name)
        write_text(Path(figures_folder) / f"{name}.txt", f"{caption}\n")
    return f"{len(tables)} tables as Markdown, CSV and LaTeX; {len(figures)} figures as PDF and PNG"
