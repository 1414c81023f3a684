"""Import this first in a program: until `tool.cli.run_stage`, Ctrl-C ends it without a word.

Imports take seconds. Python's own handler would print a traceback through them, or a library would
turn the interrupt into an error of its own. The default action of the system does neither, and a
shell that runs the program in a script then stops the script too.
"""

from __future__ import annotations

import signal

# A program in the background of a shell ignores Ctrl-C, and goes on doing so.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
