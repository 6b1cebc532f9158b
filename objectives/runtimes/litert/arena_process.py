"""A process that starts TFLite Micro's interpreter with arenas of given sizes, since too small a one may end it.

This file is executed as a program, by `objectives.runtimes.litert.arena_tries`: it imports nothing of the project, so
that a new process costs little. Its argument is a .tflite file; it reads numbers of bytes, one in each line, and
answers each with one line: `starts`, `too small`, or what the interpreter says of the file. With `run` after the number
it also runs the file once, since the kernels see only then which types they get.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

TOO_SMALL = "missing:", "Too many buffers"  # what the interpreter says of an arena


def main() -> None:
    """Answer until the input is closed."""
    from tflite_micro.python.tflite_micro import runtime  # noqa: PLC0415 - only the program needs it

    content = Path(sys.argv[1]).read_bytes()
    answers = os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)  # compiled code writes its reasons there
        for line in sys.stdin:
            said.seek(0)
            said.truncate()
            try:
                arena, *runs = line.split()
                interpreter = runtime.Interpreter.from_bytes(content, arena_size=int(arena))
                if runs:
                    for place in range(len(runtime.convert_bytearray_to_object(content).subgraphs[0].inputs)):
                        details = interpreter.get_input_details(place)
                        interpreter.set_input(np.zeros(details["shape"], details["dtype"]), place)
                    interpreter.invoke()
                answer = "starts"
            except RuntimeError as error:
                said.seek(0)
                words = said.read().decode(errors="replace").strip() or str(error)
                answer = "; ".join(part.strip() for part in words.splitlines() if part.strip())
                answer = "too small" if any(sign in answer for sign in TOO_SMALL) else answer
            print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
