"""Editing of ONNX graphs: what can be done to one, never whether it should be."""
