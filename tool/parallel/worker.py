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
GONE = (EOFError, OSError)  # of a pipe: nothing left to read, or in the middle of a message
VALUE, BYTES, ERROR = range(3)  # pickled, as they are, a pickled exception

_HEAD = struct.Struct("!BQ")  # of a message: kind and length


def serve(pipe: socket.socket) -> None:
    """Get the function, then arguments, again and again, until the other end hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork has the handlers of its parent
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.setpgrp()  # what the whole group gets is for the parent: it saves, then ends this process
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
            result = answer = None  # while this waits for the next one


def _pickled_error(error: BaseException) -> bytes:
    """Return the pickled error, its traceback as a note; its text if it cannot be pickled."""
    error.add_note(traceback.format_exc())
    try:
        answer = pickle.dumps(error)
        pickle.loads(answer)
    except BaseException:  # an error may raise anything when it is pickled
        answer = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return answer


def send(pipe: socket.socket, kind: int, content: bytes) -> None:
    """Write a message whole."""
    pipe.sendall(_HEAD.pack(kind, len(content)))
    pipe.sendall(content)


def receive(pipe: socket.socket) -> tuple[int, bytearray]:
    """Return kind and content of the next message; raise `EOFError` if it is cut off."""
    kind, length = _HEAD.unpack(_read(pipe, _HEAD.size))
    return kind, _read(pipe, length)


def _read(pipe: socket.socket, length: int) -> bytearray:
    content = bytearray(length)
    left = memoryview(content)
    while left:
        received = pipe.recv_into(left, 0, socket.MSG_WAITALL)
        if not received:
            raise EOFError
        left = left[received:]
    return content


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
