from __future__ import annotations

import csv
import io

import pytest

from nnssl.core.names import csv_cell, csv_table, latex, markdown, picture


@pytest.mark.parametrize(
    "name", ["=cmd()", "+1+cmd|' /C calc'!A0", "-x", "@SUM(A1)", "\tx", "\r=1", "\n=1", "\uff1d1", "=-1", "--1"]
)
def test_csv_cell__formulas_become_text(name: str) -> None:
    assert csv_cell(name) == f"'{name}"


@pytest.mark.parametrize("value", ["a=b", "", "-1.5", "+0.25", "-inf", "1e-3", "x-1", -1.5, 3, None, True])
def test_csv_cell__all_else_stays(value: object) -> None:
    assert csv_cell(value) is value


def test_csv_table__comes_back() -> None:
    names = ["a|b", "x_1&2%", 'say "hi", twice', "two\nlines", "ä ;", "liver"]
    rows = [[name, f"={name}", -0.5] for name in names]
    found = list(csv.reader(io.StringIO(csv_table(["name", "-formula", "number"], rows))))
    assert found == [["name", "'-formula", "number"], *([name, f"'={name}", "-0.5"] for name in names)]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("x_1&2%", "x_1&amp;2%"),
        ("=cmd()", "=cmd()"),
        ("lung_left", "lung_left"),
        ("_a_ __b__", r"\_a\_ \_\_b\_\_"),
        ("`code` *star* ~~gone~~ $x$", r"\`code\` \*star\* \~\~gone\~\~ \$x\$"),
        ("[link](http://x) \\|", r"\[link\](http://x) \\\|"),
        ("<script>", "&lt;script&gt;"),
        ("two\r\nlines", "two lines"),
        ("0.500 ± 0.100", "0.500 ± 0.100"),
    ],
)
def test_markdown(text: str, escaped: str) -> None:
    assert markdown(text) == escaped


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("x_1&2%", r"x\_1\&2\%"),
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("a^2~b $c$ #1", r"a\textasciicircum{}2\textasciitilde{}b \$c\$ \#1"),
        ("a|b <c>", r"a\textbar{}b \textless{}c\textgreater{}"),
        ("two\nlines", "two lines"),
        ("=cmd()", "=cmd()"),
    ],
)
def test_latex(text: str, escaped: str) -> None:
    assert latex(text) == escaped


def test_picture__draws_any_name() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    text = figure.suptitle(picture("$x_{$ costs 5$"))
    FigureCanvasAgg(figure).draw()
    assert text.get_text() == r"\$x_{\$ costs 5\$"
