"""The error for input that its user can put right."""

from __future__ import annotations


class UserError(Exception):
    """Bad input; the message names the file or argument, what was found, what was expected and what to do.

    Command lines print the message alone, without a traceback.
    """
