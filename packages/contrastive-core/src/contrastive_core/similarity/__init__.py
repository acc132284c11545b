"""Row statistics of a similarity matrix that is never stored: the one primitive under every contrastive loss."""

from contrastive_core.similarity.primitive import row_lse, self_lse

__all__ = ["row_lse", "self_lse"]
