"""One thing to ship: models, samples and evidence under a manifest of digests, signed. Never torch, never onnx."""
