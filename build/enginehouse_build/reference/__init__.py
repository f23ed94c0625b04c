"""The fp32 ONNX reference that everything else is held against."""
