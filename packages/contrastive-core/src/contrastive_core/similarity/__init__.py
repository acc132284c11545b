"""Compute the row-wise log-sum-exp of a similarity matrix without storing it, the basis of the contrastive losses."""

from contrastive_core.similarity.api import Among, active_backend, row_lse, self_lse, use_backend

__all__ = ["Among", "active_backend", "row_lse", "self_lse", "use_backend"]
