"""tools.calibrate: makes a model profile for the `fklt` codec.

    python3 -m tools.calibrate.fetch_text TEXT
    python3 -m tools.calibrate MODEL --text wiki=TEXT/wiki.txt ... --out profile.safetensors

Runs a model over text, learns how its keys and values vary (mean, covariance) and how much
an error in them costs (the Fisher metric), and writes transforms, entropy tables and a map
from step size to predicted loss as one safetensors file. codec/fklt/FORMAT.md says what is
in it; docs/fklt.md explains the method and shows what was measured.

    text.py         files -> token passages, some kept apart
    layout.py       a token's KV as one vector; its partition into groups
    capture.py      model -> KV vectors and gradients, passage by passage, resumable
    fit.py          mean, covariance, metric -> transforms
    sensitivity.py  how much a token matters, predicted from its coordinates
    tables.py       integer classes, entropy tables, centroids
    reference.py    a slow, plain encoder and decoder of a profile
    protocol.py     the prefix protocol: what the loss really is
    profile.py      reads and writes the file
    evaluate.py     scores profiles on other text; verdict.py says what they have to reach
    document.py     writes docs/fklt.md from what was measured
"""
