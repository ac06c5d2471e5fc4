"""kvcask-eval: what compression costs a real model. See README.md."""
