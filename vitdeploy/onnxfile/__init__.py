"""The ONNX file without onnx or any engine: one reader of its bytes, and views on what it read."""
