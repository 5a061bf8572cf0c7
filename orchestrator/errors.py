"""The one kind of failure that a user can mend.

Everything else that goes wrong is a fault of ours and keeps its traceback.
"""


class UserError(ValueError):
    """A fault in what was asked for: one line that names the field, the value and the remedy (exit 2)."""
