"""A case after both of its files were looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from contrastive_core.app.checks import Finding, Item, Level, several
from ssl_medseg.checking.image_facts import ImageFacts
from ssl_medseg.checking.label_facts import LabelFacts
from ssl_medseg.data.cases import Case


@dataclass(frozen=True)
class Looked:
    """A case with what is known of its files.

    Attributes:
        case: of the data set.
        image: what is known of its image.
        label: what is known of its label, None if it has none.
    """

    case: Case
    image: ImageFacts
    label: LabelFacts | None

    @property
    def is_good(self) -> bool:
        """Whether the image was read."""
        return self.image.problem is None


def about(
    looked: Sequence[Looked], level: Level, kind: str, title: str, detail: Callable[[Looked], str | None], *, noun: str
) -> Iterator[Finding]:
    """A finding about every case that `detail` says something of, if it does of any.

    Args:
        looked: all cases.
        level: of the finding.
        kind: one word.
        title: what follows the number of cases in its title.
        detail: what there is to say of a case; None: nothing.
        noun: what is counted: ``image``, ``label``.
    """
    items = [Item([one.case.name], words) for one in looked if (words := detail(one)) is not None]
    if items:
        yield Finding(level, kind, f"{several(len(items), noun)} {title}", items)
