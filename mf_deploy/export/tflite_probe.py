"""Run as a script: load a TFLite model and invoke it twice, in a process that may crash.

LiteRT checks a quantized model while it prepares it, and some that pass break its memory later. Whoever
starts this script learns that from the exit code instead of dying with it.
"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def main(model_path: str) -> None:
    interpreter = Interpreter(model_path=model_path, num_threads=1)
    interpreter.allocate_tensors()
    (taken,) = interpreter.get_input_details()
    generator = np.random.default_rng(0)
    for _ in range(2):
        if np.issubdtype(taken["dtype"], np.integer):
            limits = np.iinfo(taken["dtype"])
            image = generator.integers(limits.min, limits.max + 1, taken["shape"], taken["dtype"])
        else:
            image = generator.standard_normal(taken["shape"], np.float32)
        interpreter.set_tensor(taken["index"], image)
        interpreter.invoke()
    for given in interpreter.get_output_details():
        if not np.isfinite(interpreter.get_tensor(given["index"])).all():
            raise SystemExit("its outputs are not finite")


main(sys.argv[1])
