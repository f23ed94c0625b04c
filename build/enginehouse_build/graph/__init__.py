"""ONNX graphs: reading, naming, joining, and the pieces that pre- and post-processing add."""
