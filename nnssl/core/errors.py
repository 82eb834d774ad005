"""The errors that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the user: the message is one sentence that names the fix; commands print it and exit with code 1."""


class BadCase(Exception):
    """A volume cannot be used; the message is the short reason. The others go on."""


class DamagedFile(BadCase):
    """A file of a volume cannot be read, or does not hold what its header promises."""
