"""Build the HTML of a report, which embeds its images and loads nothing from the network.

The module uses typed functions rather than templates, because sections consist of computed figures and tables. Each
function escapes its text, and mypy checks the calls.
"""

from __future__ import annotations

import base64
import io
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources

import torch
from PIL import Image
from torch import Tensor

_EXACT_SIDE = 64
_LARGEST_SIDE = 160


def to_image(picture: Tensor) -> Image.Image:
    """Convert a uint8 or [0, 1] float tensor ``[3, H, W]`` to a PIL image."""
    if picture.is_floating_point():
        picture = (picture.detach().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(picture.cpu().permute(1, 2, 0).contiguous().numpy())


def data_uri(picture: Tensor) -> str:
    """Encode an image as a ``data:`` URI.

    Images of at most 64 pixels per side are encoded losslessly (PNG); larger images are reduced to at most 160 pixels
    per side (JPEG).
    """
    image, file = to_image(picture), io.BytesIO()
    if max(image.size) <= _EXACT_SIDE:
        image.save(file, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
        image.save(file, "JPEG", quality=88)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


_SMALL_SIDE = 48


def document(title: str, parts: Iterable[str]) -> str:
    """Return a complete HTML page whose security policy forbids loading external resources."""
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Return a section with a heading."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str, *, kind: str = "") -> str:
    """Return a paragraph of plain text; text between backquotes is set as code."""
    pieces = escape(text).split("`")
    content = "".join(f"<code>{_whole_flags(piece)}</code>" if i % 2 else piece for i, piece in enumerate(pieces))
    return f'<p class="{kind}">{content}</p>' if kind else f"<p>{content}</p>"


def command(text: str) -> str:
    """Return a block with a command line."""
    return f"<pre><code>{_whole_flags(escape(text))}</code></pre>"


_FLAG = re.compile(r"(?<!\S)--?[A-Za-z][\w.-]*")


def _whole_flags(code: str) -> str:
    """Mark the flags of a command so that lines do not break at their hyphens on a narrow screen."""
    return _FLAG.sub(r'<span class="flag">\g<0></span>', code)


def figure(content: str) -> str:
    """Return a box that scrolls if its content is wider than the page, so that text remains readable on a phone."""
    return f'<figure class="wide">\n{content}\n</figure>'


def facts(values: Mapping[str, str]) -> str:
    """Return a list of headline numbers with their names."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values.items())
    return f'<dl class="facts">{items}</dl>'


def settings_table(values: Mapping[str, str], *, changed: Iterable[str] = ()) -> str:
    """Return a table of settings with the changed ones highlighted."""
    changed_names = set(changed)
    rows = "".join(
        f'<tr{" class=changed" if name in changed_names else ""}><th scope="row">{escape(name)}</th>'
        f"<td>{escape(value)}</td></tr>"
        for name, value in values.items()
    )
    return f'<table class="settings"><tbody>{rows}</tbody></table>'


def table(head: Iterable[str], rows: Iterable[Iterable[str]], *, kind: str) -> str:
    """Return a table of plain text, in a box that scrolls; its first column holds the row headings."""
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = ""
    for row in rows:
        name, *cells = row
        body += (
            f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        )
    return figure(f'<table class="{kind}"><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>')


def picture(png: bytes, *, label: str) -> str:
    """Return an embedded PNG, at most as wide as the page."""
    return (
        f'<img class="picture" src="data:image/png;base64,{b64encode(png).decode()}" alt="{escape(label, quote=True)}">'
    )


def warnings(texts: Iterable[str]) -> str:
    """Return a list of warnings, or an empty string if there are none."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="warnings">{items}</ul>' if items else ""


def image(pixels: Tensor, *, label: str) -> str:
    """Return an embedded image; small images are enlarged without smoothing."""
    small = max(pixels.shape[-2:]) <= _SMALL_SIDE
    kind = ' class="small"' if small else ""
    return f'<img{kind} src="{data_uri(pixels)}" alt="{escape(label, quote=True)}">'
