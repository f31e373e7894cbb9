"""A bundle as ONNX with a script that stands alone, if it gives the same scores."""
