"""The root of every error that the user can mend."""


class UserError(ValueError):
    """An option, a file or data that cannot be used. The message is one line: what, where, and the remedy.

    Attributes:
        exit_status: of a command that ends by it.
    """

    exit_status = 2
