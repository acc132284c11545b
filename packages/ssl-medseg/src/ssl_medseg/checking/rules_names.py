"""Whom the cases are of, and what could tell strangers so."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from contrastive_core.app.checks import Finding, Item, several
from ssl_medseg.checking.looked import Looked

_DATE = re.compile(r"(?<!\d)(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])(?!\d)")


def identifying(looked: Sequence[Looked], *, show: bool) -> Iterator[Finding]:
    """Header fields with text, and names that hold a date.

    Args:
        looked: all cases.
        show: list the text itself.
    """
    having = [one for one in looked if one.image.texts]
    if having:
        fields = Counter(field for one in having for field, _ in one.image.texts)
        listed = ", ".join(f"{field} {count}" for field, count in fields.items())
        title = (
            f"{several(len(having), 'image')} with text in the header ({listed}), which may say who the patient is"
            + ("" if show else "; --show_headers lists it")
        )
        items = [
            Item([one.case.name], ", ".join(f"{field} {text!r}" for field, text in one.image.texts)) for one in having
        ]
        yield Finding("note", "header_text", title, items if show else ())
    dated = [one.case.name for one in looked if _DATE.search(one.case.name)]
    if dated:
        title = (
            f"{several(len(dated), 'case')} whose name holds what looks like a date: reports repeat the names of cases"
        )
        yield Finding("note", "date_in_name", title, [Item(dated)])
