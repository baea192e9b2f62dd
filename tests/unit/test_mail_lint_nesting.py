"""Findings about tags that are not closed or not nested, with the file and line of each."""

from pathlib import Path

import pytest
from template_folders import found, put, write


@pytest.mark.parametrize(
    ("html", "line", "text"),
    [
        ("<div>\n<b>x</div>", 3, "<b> is still open at </div>; write </b> before that"),
        ("\n<div>", 3, "<div> is still open at the end of the body; write </div>"),
        ("\n</div>", 3, "</div> closes nothing; remove it"),
        ("<b>\n<i>x</b></i>", 3, "<i> is still open at </b>"),
        ("<table><tr>\n<td><b>x<td>y</table>", 3, "<b> is still open at <td>"),
        ("{% if userName %}<ul>\n<li>{% endif %}x", 2, "<ul> is still open"),
        ("\n{% if not userName %}<ul>{% endif %}x", 3, "<ul> is still open"),
        ("<div/>x", 2, "<div> is still open"),
        ("x</br>", 2, "</br> is not a tag"),
        ("<p><div>x</div>\n</p>", 3, "</p> closes nothing: the paragraph has ended before"),
        ("<!-- x", 2, "comment is not finished"),
        ("<!--[if mso]><b>x</b>-->", 2, "no end for it"),
        ("<i title='x>a</i><i class='b'>c</i>", 2, "without its closing quote"),
        ("<b", 2, "this tag is not finished"),
        ("<style>a { color: red }", 2, "<style> is still open"),
    ],
)
def test_html_that_is_not_well_nested_is_an_error_with_its_line(
    tmp_path: Path, html: str, line: int, text: str
) -> None:
    root = write(tmp_path, body_html='<html lang="en">{{ otp }} {{ validUntil }}\n' + html)
    (it, *_) = [it for it in found(root) if text in it.text]
    assert (it.file, it.line, it.level) == ("mine/body.html", line, "error")


@pytest.mark.parametrize(
    "html",
    [
        "<br><br/><hr><img alt=x><p>a<p>b<div>c</div><ul><li>a<li>b</ul><dl><dt>a<dd>b</dl>",
        "<table><thead><tr><th>a<tbody><tr><td>b<td>c<tr><td><table><tr><td>d</table></table>",
        "<!--[if mso]><table><tr><td><![endif]--><b>x</b><!--[if mso]></td></tr></table><![endif]-->",
        "<!--[if !mso]><!--><b>x</b><!--<![endif]--><!--[if !mso]> --><b>x</b><!-- <![endif]-->",
        "<![if !mso]><b>x</b><![endif]><!--[if gte mso 9]><v:rect/><o:p></o:p><![endif]-->",
        "<svg><path/><g><circle/></g></svg><style>a > b { c: d }</style></body></html>",
        "<select><option>a<option>b</select>{{ '<b>' }} 1 < 2",
    ],
)
def test_void_elements_optional_ends_and_comments_for_outlook_are_no_error(tmp_path: Path, html: str) -> None:
    root = write(tmp_path, body_html='<html lang="en">{{ otp }} {{ validUntil }}' + html)
    assert [it for it in found(root) if it.level == "error"] == []


def test_a_finding_in_an_included_file_names_that_file_and_line(tmp_path: Path) -> None:
    put(tmp_path, foot_html="<hr>\n{{ otp[:0] }}\n<b>x")
    root = write(tmp_path, body_html='<html lang="en">{{ otp }}\n\n\n{{ validUntil }}{% include "foot.html" %}')
    assert [(it.file, it.line, it.level) for it in found(root)] == [("foot.html", 3, "error")]
