"""What is accepted, and why: exports, engines, quantized models, each judged by running it."""
