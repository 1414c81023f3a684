"""The loop of a worker process of `tool.parallel.processes`, and the form of its messages.

A message is a head (its kind, 1 byte, and its length, 8 bytes, big-endian) and its content.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import struct
import threading
import traceback
from collections.abc import Callable
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # that a run answers by saving
GONE = (EOFError, OSError)  # the errors of a pipe whose other end is gone
VALUE, BYTES, ERROR = range(3)  # kinds: a pickled value, bytes unchanged, a pickled exception

_HEAD = struct.Struct("!BQ")  # the head of a message: its kind and its length


def serve(pipe: socket.socket) -> None:
    """Receive the function, then answer one message of arguments after the other.

    The loop ends when the other end hangs up.

    Args:
        pipe: The connection to the parent. The first message is the pickled function, each further
            one a pickled tuple of arguments.
    """
    # Ctrl-C is for the parent only. A fork inherits its parent's handlers of the others, so reset
    # them. What is ignored, as SIGHUP is under nohup, stays so.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    # Leave the group: a signal to it is for the parent, which saves and then ends this process.
    os.setpgrp()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function: Callable[..., Any] | None = None
    with contextlib.suppress(*GONE):
        _, content = receive(pipe)
        while True:
            _, arguments = receive(pipe)
            try:
                # Unpickle the function inside the `try`, so that the caller gets the error.
                function = function or pickle.loads(content)
                result = function(*pickle.loads(arguments))
                if type(result) is bytes:
                    kind, answer = BYTES, result
                else:
                    kind, answer = VALUE, pickle.dumps(result)
            except BaseException as error:
                kind, answer = ERROR, _pickled_error(error)
            send(pipe, kind, answer)
            result = answer = None  # free them while this waits for the next arguments


def _pickled_error(error: BaseException) -> bytes:
    """Return the pickled error, with its traceback as a note.

    If it cannot be pickled and unpickled, a `RuntimeError` with its text is pickled instead.
    """
    error.add_note(traceback.format_exc())
    # Some errors can be pickled but not unpickled, so try both here.
    try:
        answer = pickle.dumps(error)
        pickle.loads(answer)
    except BaseException:  # an error may raise anything when it is pickled
        answer = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return answer


def send(pipe: socket.socket, kind: int, content: bytes) -> None:
    """Write one whole message.

    Raises:
        OSError: The other end is gone.
    """
    pipe.sendall(_HEAD.pack(kind, len(content)))
    pipe.sendall(content)


def receive(pipe: socket.socket) -> tuple[int, bytearray]:
    """Return the kind and the content of the next message.

    Raises:
        EOFError: The message is cut off, or there is none.
    """
    kind, length = _HEAD.unpack(_read(pipe, _HEAD.size))
    return kind, _read(pipe, length)


def _read(pipe: socket.socket, length: int) -> bytearray:
    """Read exactly `length` bytes; raise `EOFError` if the pipe ends earlier."""
    content = bytearray(length)
    remaining = memoryview(content)
    while remaining:
        received = pipe.recv_into(remaining, 0, socket.MSG_WAITALL)
        if not received:
            raise EOFError
        remaining = remaining[received:]
    return content


def _end_with_parent() -> None:
    """Wait for the end of the parent, then end this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
