"""The errors that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the user: the message is one sentence that names the fix; commands print it and exit with code 1."""
