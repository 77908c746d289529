"""The root of every error that the user can mend, and the exit statuses of all commands.

====== ================================================================================================================
status meaning
====== ================================================================================================================
0      done
1      ``data check --strict`` found something that would be dropped; or a fault of this project, with its traceback
2      an option, a file or data that cannot be used: the line on standard error tells what, where, and the remedy
65     training diverged: loss or gradient were not finite in ten steps in a row
70     --verify-kernels found a fast kernel that differs from the reference
71     out of memory, of the GPU or of the machine
74     a file cannot be read or written: the disk is full, for instance
75     another process of the run (torchrun) has ended or answers no more
129    stopped by SIGHUP: the terminal went away
130    stopped by SIGINT: Ctrl-C
138    stopped by SIGUSR1: a cluster's notice that time is up
143    stopped by SIGTERM
====== ================================================================================================================

Training that is stopped (128 + the signal's number) finishes its step and writes a checkpoint first; a second signal
ends it at once. After 65, 71, 74, 75 and any stop, ``--resume`` goes on from the newest checkpoint.
"""

from collections.abc import Sequence

EXIT_USER_ERROR, EXIT_DIVERGED, EXIT_KERNEL_MISMATCH, EXIT_OUT_OF_MEMORY = 2, 65, 70, 71
EXIT_IO_ERROR, EXIT_LOST_RANKS, EXIT_INTERRUPTED = 74, 75, 130


class UserError(ValueError):
    """An option, a file or data that cannot be used. The message is one line: what, where, and the remedy.

    Args:
        message: the line.
        details: more lines, for who wants to know more than the line says.

    Attributes:
        exit_status: of a command that ends by it.
    """

    exit_status = EXIT_USER_ERROR

    def __init__(self, message: str = "", *, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details = tuple(details)
