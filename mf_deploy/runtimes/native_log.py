"""What native libraries say on standard error: their small talk is dropped, the rest is let through."""

import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

CHATTER = re.compile(rb"INFO: |[IW]\d{4,} |WARNING: All log messages before absl::InitializeLog")

_one_at_a_time = threading.RLock()


@contextmanager
def quiet_native() -> Iterator[None]:
    """Hold back what is written to standard error in the block, by C++ too; show the rest afterwards.

    Information and warning lines in the formats of TensorFlow Lite and absl are dropped. A block that
    raises shows nothing: its exception is the message.
    """
    with _one_at_a_time, tempfile.TemporaryFile() as log:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
        log.seek(0)
        os.write(2, b"".join(line for line in log if not CHATTER.match(line)))
