"""Import this first in a program: what its signals do from its first moment.

Until `tool.cli.run_stage`, Ctrl-C ends it without a word.
Imports take seconds. Python's own handler would print a traceback through them, or a library would
turn the interrupt into an error of its own. The default action of the system does neither, and a
shell that runs the program in a script then stops the script too.

A shell passes no signal on. If a script of `scripts/` is killed or ended, the kernel sends SIGTERM
to the program that it waits for, which saves what it has and ends as after any SIGTERM (Linux).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of prctl(2)

# A program in the background of a shell ignores Ctrl-C, and goes on doing so.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
# scripts/settings.sh says which process the script is. A program that something else started stays.
if sys.platform == "linux" and os.environ.get("SCRIPT_PROCESS") == str(os.getppid()):
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
