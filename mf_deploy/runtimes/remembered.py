"""A session that remembers its answers: a search asks the reference for the same images many times."""

import hashlib

import numpy as np

from mf_deploy.runtimes.session import Session


class RememberedSession(Session):
    """Runs ``source`` once for each batch of pictures that it is given, and keeps the outputs."""

    def __init__(self, source: Session) -> None:
        super().__init__(source.name, source.input, source.preprocessing)
        self.source, self._outputs = source, dict[bytes, dict[str, np.ndarray]]()

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        key = hashlib.sha256(np.ascontiguousarray(batch).data).digest()
        if key not in self._outputs:
            self._outputs[key] = self.source.run(batch)
        return self._outputs[key]

    def _infer(self, prepared: np.ndarray) -> dict[str, np.ndarray]:
        return self.source.run_prepared(prepared)
