"""The loop of a worker process of `tool.parallel.processes`, and the form of its messages."""

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

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GONE = (EOFError, OSError)  # what a pipe raises when the other end is gone
VALUE, BYTES, ERROR = range(3)  # a pickled value, bytes as they are, a pickled exception

_HEAD = struct.Struct("!BQ")  # the head of a message: its kind and its length


def serve(pipe: socket.socket) -> None:
    """Receive the function, then arguments again and again; answer until the other end hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork inherits its parent's handlers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.setpgrp()  # a signal to the group is for the parent, which saves, then ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function: Callable[..., Any] | None = None
    with contextlib.suppress(*GONE):
        _, content = receive(pipe)
        while True:
            _, arguments = receive(pipe)
            try:
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

    If it cannot be pickled, its text is pickled instead.
    """
    error.add_note(traceback.format_exc())
    try:
        answer = pickle.dumps(error)
        pickle.loads(answer)
    except BaseException:  # an error may raise anything when it is pickled
        answer = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return answer


def send(pipe: socket.socket, kind: int, content: bytes) -> None:
    """Write one whole message."""
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
    """Read exactly `length` bytes; raise `EOFError` if the pipe ends before."""
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
